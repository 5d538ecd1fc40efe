// Jupiter 0.2.7's own registry and resolver.
package main

import (
	"context"

	"github.com/douyu/jupiter/pkg/client/grpc/resolver"
	"github.com/douyu/jupiter/pkg/constant"
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
	if options.Prefix != "" {
		config.Prefix = options.Prefix
	}
	return config.Build()
}

func list(options harness.Options) ([]harness.Endpoint, error) {
	services, err := build(options).ListServices(context.Background(), options.Service, "grpc")
	endpoints := []harness.Endpoint{}
	for _, info := range services {
		endpoints = append(endpoints, harness.Endpoint{
			Address: info.Address, Weight: info.Weight, Enable: info.Enable, Metadata: info.Metadata,
		})
	}
	return endpoints, err
}

func watch(options harness.Options, show func([]string)) error {
	sets, err := build(options).WatchServices(context.Background(), options.Service, "grpc")
	if err != nil {
		return err
	}
	for set := range sets {
		addresses := []string{}
		for _, info := range set.Nodes {
			addresses = append(addresses, info.Address)
		}
		show(addresses)
		harness.Print("configurators", map[string]any{
			"routes": set.RouteConfigs, "providers": set.ProviderConfigs, "consumers": set.ConsumerConfigs,
		})
	}
	return nil
}

func register(options harness.Options) (func() error, error) {
	choices := []server.Option{server.WithScheme("grpc"), server.WithAddress(options.Address), server.WithKind(constant.ServiceProvider)}
	if options.Governor {
		choices = []server.Option{server.WithScheme("http"), server.WithAddress(options.Address), server.WithKind(constant.ServiceGovernor)}
	}
	for key, value := range options.Metadata {
		choices = append(choices, server.WithMetaData(key, value))
	}
	info := server.ApplyOptions(choices...)
	info.Name, info.Weight, info.Enable = options.Service, float64(options.Weight), !options.Disabled
	reg := build(options)
	// A context with a deadline makes this version pass nil to etcd's client.
	return reg.Close, reg.RegisterService(context.Background(), &info)
}

func dial(options harness.Options) (harness.Call, error) {
	resolver.Register("etcd", build(options))
	conn, err := grpc.Dial("etcd:///"+options.Service, grpc.WithInsecure(), grpc.WithBalancerName("round_robin"))
	if err != nil {
		return nil, err
	}
	client := grpc_health_v1.NewHealthClient(conn)
	return func(ctx context.Context) (string, error) {
		var from peer.Peer
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&from))
		if err != nil {
			return "", err
		}
		return from.Addr.String(), nil
	}, nil
}
