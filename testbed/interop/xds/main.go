// gRPC's own xDS client in Go, as any program in another language would follow `grpc-etcd ads`.
//
// The bootstrap comes from the environment (GRPC_XDS_BOOTSTRAP_CONFIG), as gRPC has it.
package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	_ "google.golang.org/grpc/xds"

	"grpc-etcd/testbed/interop/lib/harness"
)

func main() {
	harness.Main(harness.Program{Dial: dial})
}

func dial(options harness.Options) (harness.Call, error) {
	conn, err := grpc.NewClient("xds:///"+options.Service, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	health := grpc_health_v1.NewHealthClient(conn)
	return func(ctx context.Context) (string, error) {
		var from peer.Peer
		_, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&from))
		if err != nil {
			return "", err
		}
		return from.Addr.String(), nil
	}, nil
}
