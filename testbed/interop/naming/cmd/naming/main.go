// etcd's own naming package and its gRPC resolver.
package main

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"grpc-etcd/testbed/interop/lib/harness"
)

const leaseSeconds = 10

func main() {
	harness.Main(harness.Program{List: list, Watch: watch, Register: register, Dial: dial})
}

func manager(options harness.Options) (*clientv3.Client, endpoints.Manager, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: options.Endpoints})
	if err != nil {
		return nil, nil, err
	}
	found, err := endpoints.NewManager(client, options.Prefix+options.Service)
	return client, found, err
}

func list(options harness.Options) ([]harness.Endpoint, error) {
	_, found, err := manager(options)
	if err != nil {
		return nil, err
	}
	known, err := found.List(context.Background())
	result := []harness.Endpoint{}
	for _, endpoint := range known {
		result = append(result, harness.Endpoint{Address: endpoint.Addr, Enable: true, Metadata: texts(endpoint.Metadata)})
	}
	return result, err
}

func texts(metadata any) map[string]string {
	result := map[string]string{}
	if object, ok := metadata.(map[string]any); ok {
		for key, value := range object {
			if text, ok := value.(string); ok {
				result[key] = text
			}
		}
	}
	return result
}

func watch(options harness.Options, show func([]string)) error {
	_, found, err := manager(options)
	if err != nil {
		return err
	}
	changes, err := found.NewWatchChannel(context.Background())
	if err != nil {
		return err
	}
	show([]string{})
	known := map[string]string{}
	for batch := range changes {
		for _, change := range batch {
			if change.Op == endpoints.Delete {
				delete(known, change.Key)
			} else {
				known[change.Key] = change.Endpoint.Addr
			}
		}
		addresses := []string{}
		for _, address := range known {
			addresses = append(addresses, address)
		}
		show(addresses)
	}
	return nil
}

func register(options harness.Options) (func() error, error) {
	client, found, err := manager(options)
	if err != nil {
		return nil, err
	}
	lease, err := client.Grant(context.Background(), leaseSeconds)
	if err != nil {
		return nil, err
	}
	alive, err := client.KeepAlive(context.Background(), lease.ID)
	if err != nil {
		return nil, err
	}
	go func() {
		for range alive {
		}
	}()
	key := options.Prefix + options.Service + "/" + options.Address
	endpoint := endpoints.Endpoint{Addr: options.Address}
	if len(options.Metadata) > 0 {
		endpoint.Metadata = options.Metadata
	}
	err = found.AddEndpoint(context.Background(), key, endpoint, clientv3.WithLease(lease.ID))
	return func() error { return found.DeleteEndpoint(context.Background(), key) }, err
}

func dial(options harness.Options) (harness.Call, error) {
	client, _, err := manager(options)
	if err != nil {
		return nil, err
	}
	builder, err := resolver.NewBuilder(client)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("etcd:///"+options.Prefix+options.Service, grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
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
