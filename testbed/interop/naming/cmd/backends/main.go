// Backends answers gRPC health checks at many loopback addresses from one process, as a fleet of servers would.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"grpc-etcd/testbed/interop/lib/harness"
)

func main() {
	count := flag.Int("count", 3, "how many addresses from 127.0.1.1 on")
	port := flag.Int("port", 0, "the port at all of them; 0 takes any free one at each")
	flag.Parse()
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	addresses := []string{}
	for number := 1; number <= *count; number++ {
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.1.%d:%d", number, *port))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		addresses = append(addresses, listener.Addr().String())
		go func() { _ = server.Serve(listener) }()
	}
	harness.Print("serving", map[string]any{"addresses": addresses})
	select {}
}
