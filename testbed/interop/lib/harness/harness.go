// Package harness is the command line that all interop programs share: list, watch, register, call.
//
// A program hands over what its framework's own client does for each of these; the harness reads the flags and prints
// what came of it, one JSON object a line. Standard output is ours alone: some frameworks print to it while they work.
package harness

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options is what the command line asks for.
type Options struct {
	Endpoints []string
	Service   string
	Prefix    string
	Address   string
	Weight    int
	Metadata  map[string]string
	Disabled  bool
	Governor  bool
	ID        string
}

// Endpoint is what a framework's client told of one backend.
type Endpoint struct {
	Address  string            `json:"address"`
	Weight   float64           `json:"weight"`
	Enable   bool              `json:"enable"`
	Metadata map[string]string `json:"metadata"`
}

// Call sends one RPC and says which address answered.
type Call func(ctx context.Context) (address string, err error)

// Program is one framework; a nil field is something that it cannot do.
type Program struct {
	List     func(Options) ([]Endpoint, error)
	Watch    func(Options, func(addresses []string)) error
	Register func(Options) (unregister func() error, err error)
	Dial     func(Options) (Call, error)
}

var (
	out      = os.Stdout
	printing sync.Mutex
)

// Print writes one line of JSON.
func Print(event string, fields map[string]any) {
	fields["event"] = event
	line, err := json.Marshal(fields)
	if err != nil {
		fail(err)
	}
	printing.Lock()
	defer printing.Unlock()
	_, _ = out.Write(append(line, '\n'))
}

// Main runs the command that the arguments name.
func Main(program Program) {
	os.Stdout = os.Stderr
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: %s list|watch|register|call [flags]", os.Args[0]))
	}
	options := parse(os.Args[2:])
	switch command := os.Args[1]; command {
	case "list":
		list(program, options)
	case "watch":
		check(program.Watch(options, printSet))
	case "register":
		register(program, options)
	case "call":
		call(program, options)
	default:
		fail(fmt.Errorf("there is no command %q", command))
	}
}

func parse(arguments []string) Options {
	flags := flag.NewFlagSet("interop", flag.ExitOnError)
	endpoints := flags.String("endpoints", "127.0.0.1:2379", "etcd's endpoints, with commas")
	service := flags.String("service", "greeter", "the service's name")
	prefix := flags.String("prefix", "", "the registry's prefix, where the framework has one")
	address := flags.String("address", "", "the address to register")
	weight := flags.Int("weight", 100, "the weight to register")
	metadata := flags.String("metadata", "", "k=v,k=v to register")
	disabled := flags.Bool("disabled", false, "register as disabled")
	governor := flags.Bool("governor", false, "register as a governor")
	id := flags.String("id", "", "the id to register under, where the framework has one")
	check(flags.Parse(arguments))
	return Options{
		Endpoints: strings.Split(*endpoints, ","), Service: *service, Prefix: *prefix, Address: *address, Weight: *weight,
		Metadata: pairs(*metadata), Disabled: *disabled, Governor: *governor, ID: *id,
	}
}

func pairs(text string) map[string]string {
	found := map[string]string{}
	for _, pair := range strings.Split(text, ",") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			found[key] = value
		}
	}
	return found
}

func list(program Program, options Options) {
	endpoints, err := program.List(options)
	check(err)
	sort.Slice(endpoints, func(i, j int) bool { return endpoints[i].Address < endpoints[j].Address })
	Print("listed", map[string]any{"endpoints": endpoints})
}

func printSet(addresses []string) {
	sort.Strings(addresses)
	Print("set", map[string]any{"addresses": addresses})
}

func register(program Program, options Options) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT) // before it is told: who hears of it may end us at once
	unregister, err := program.Register(options)
	check(err)
	Print("registered", map[string]any{"address": options.Address})
	<-stop
	check(unregister())
	Print("unregistered", map[string]any{"address": options.Address})
}

// call calls until it is ended and prints each quarter of a second who answered and what failed since the last line.
func call(program Program, options Options) {
	send, err := program.Dial(options)
	check(err)
	answered, failed := map[string]int{}, map[string]int{}
	since := time.Now()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		address, err := send(ctx)
		cancel()
		if err == nil {
			answered[address]++
			time.Sleep(300 * time.Microsecond)
		} else {
			failed[err.Error()]++
			time.Sleep(5 * time.Millisecond)
		}
		if time.Since(since) > 250*time.Millisecond {
			Print("called", map[string]any{"answered": answered, "failed": failed})
			answered, failed, since = map[string]int{}, map[string]int{}, time.Now()
		}
	}
}

func check(err error) {
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
