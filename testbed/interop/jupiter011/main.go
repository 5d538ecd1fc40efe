// Jupiter 0.11.21's own registry, resolver and gRPC client.
package main

import (
	"context"
	"fmt"

	client "github.com/douyu/jupiter/pkg/client/grpc"
	"github.com/douyu/jupiter/pkg/conf"
	"github.com/douyu/jupiter/pkg/core/constant"
	"github.com/douyu/jupiter/pkg/registry"
	"github.com/douyu/jupiter/pkg/registry/etcdv3"
	"github.com/douyu/jupiter/pkg/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"grpc-etcd/testbed/interop/lib/harness"
)

func main() {
	harness.Main(harness.Program{List: list, Watch: watch, Register: register, Dial: dial})
}

func build(options harness.Options) registry.Registry {
	config := etcdv3.DefaultConfig()
	config.Endpoints = options.Endpoints
	return config.MustBuild()
}

func target(options harness.Options) string {
	return fmt.Sprintf("grpc:%s:v1:unknown-mode", options.Service)
}

func list(options harness.Options) ([]harness.Endpoint, error) {
	services, err := build(options).ListServices(context.Background(), target(options)+"/")
	endpoints := []harness.Endpoint{}
	for _, info := range services {
		endpoints = append(endpoints, harness.Endpoint{
			Address: info.Address, Weight: info.Weight, Enable: info.Enable, Metadata: info.Metadata,
		})
	}
	return endpoints, err
}

func watch(options harness.Options, show func([]string)) error {
	sets, err := build(options).WatchServices(context.Background(), target(options)+"/")
	if err != nil {
		return err
	}
	for set := range sets {
		addresses := []string{}
		for _, info := range set.Nodes {
			addresses = append(addresses, info.Address)
		}
		show(addresses)
	}
	return nil
}

func register(options harness.Options) (func() error, error) {
	choices := []server.Option{server.WithScheme("grpc"), server.WithAddress(options.Address), server.WithKind(constant.ServiceProvider)}
	if options.Governor {
		choices = []server.Option{server.WithScheme("govern"), server.WithAddress(options.Address), server.WithKind(constant.ServiceGovernor)}
	}
	for key, value := range options.Metadata {
		choices = append(choices, server.WithMetaData(key, value))
	}
	info := server.ApplyOptions(choices...)
	info.Name, info.Weight, info.Enable = options.Service, float64(options.Weight), !options.Disabled
	reg := build(options)
	return reg.Close, reg.RegisterService(context.Background(), &info)
}

func dial(options harness.Options) (harness.Call, error) {
	if err := conf.Apply(map[string]interface{}{
		"jupiter": map[string]interface{}{"registry": map[string]interface{}{
			"default": map[string]interface{}{"endpoints": options.Endpoints},
		}},
	}); err != nil {
		return nil, err
	}
	config := client.DefaultConfig()
	config.Addr = "etcd:///" + target(options)
	conn, err := config.Build()
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
