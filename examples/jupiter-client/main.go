// A client in Jupiter 0.2.7 that calls the greeter by name, as the Go services of a company already do. Nothing in it
// knows Kubernetes or the operator: the keys in etcd are the ones that Jupiter itself would have written.
//
//	go run . -etcd etcd:2379 -calls 10
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/douyu/jupiter/pkg/client/grpc/resolver"
	"github.com/douyu/jupiter/pkg/registry/etcdv3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/examples/helloworld/helloworld"
)

func main() {
	endpoints := flag.String("etcd", "etcd:2379", "etcd's addresses, separated by commas")
	prefix := flag.String("prefix", "jupiter", "the registry's prefix")
	calls := flag.Int("calls", 10, "how many calls to make")
	flag.Parse()

	config := etcdv3.DefaultConfig()
	config.Endpoints = strings.Split(*endpoints, ",")
	config.Prefix = *prefix
	resolver.Register("etcd", config.Build())

	conn, err := grpc.Dial("etcd:///greeter", grpc.WithInsecure(), grpc.WithBalancerName("round_robin"))
	if err != nil {
		fail(err)
	}
	greeter := helloworld.NewGreeterClient(conn)
	for range make([]struct{}, *calls) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		reply, err := greeter.SayHello(ctx, &helloworld.HelloRequest{Name: "Jupiter"}, grpc.WaitForReady(true))
		cancel()
		if err != nil {
			fail(err)
		}
		fmt.Println(reply.Message)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
