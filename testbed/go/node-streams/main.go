// Serves the streams of a kubelet, port-forward and exec, to a real API server, with the code of real container runtimes.
//
// What a Pod listens on is on this machine's loopback: a forwarded port is dialed at 127.0.0.1, and a command runs here.
// It trusts whoever connects, and so listens on loopback only.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

const (
	idle   = time.Hour
	create = 30 * time.Second
)

type node struct{}

// PortForward copies between a stream and a port of this machine until one of them ends.
func (node) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	connection, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer connection.Close()
	ended := make(chan struct{}, 2)
	go func() { io.Copy(connection, stream); ended <- struct{}{} }()
	go func() { io.Copy(stream, connection); ended <- struct{}{} }()
	<-ended
	return stream.Close()
}

// ExecInContainer runs a command on this machine; it is killed when whoever asked for it has left.
func (node) ExecInContainer(
	ctx context.Context, _, _, _ string, words []string, in io.Reader, out, fault io.WriteCloser, _ bool,
	_ <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	if out != nil { // a nil *T in an interface would be no nil
		command.Stdout = out
	}
	if fault != nil {
		command.Stderr = fault
	}
	// Not command.Stdin: Wait would then wait for whoever asked to write no more, though the command has ended.
	input, err := command.StdinPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	go func() {
		if in != nil {
			io.Copy(input, in)
		}
		input.Close()
	}()
	err = command.Wait()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return utilexec.CodeExitError{Err: err, Code: ended.ExitCode()}
	}
	return err
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address on loopback")
	cert := flag.String("cert", "", "file with the certificate")
	key := flag.String("key", "", "file with its key")
	flag.Parse()
	mux := http.NewServeMux()
	mux.HandleFunc("/portForward/{namespace}/{pod}", func(w http.ResponseWriter, r *http.Request) {
		options, err := portforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(
			w, r, node{}, r.PathValue("pod"), "", options, idle, create, portforward.SupportedProtocols)
	})
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		options, err := remotecommand.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		remotecommand.ServeExec(
			w, r, node{}, r.PathValue("pod"), "", r.PathValue("container"), r.URL.Query()["command"], options, idle, create,
			remotecommand.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	log.Fatal(http.ListenAndServeTLS(*listen, *cert, *key, mux))
}
