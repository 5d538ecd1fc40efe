// go-micro 4's own etcd registry.
package main

import (
	"time"

	etcd "github.com/go-micro/plugins/v4/registry/etcd"
	"go-micro.dev/v4/registry"

	"grpc-etcd/testbed/interop/lib/harness"
)

// The default of go-micro's servers.
const lifetime = 90 * time.Second

func main() {
	harness.Main(harness.Program{List: list, Watch: watch, Register: register})
}

func build(options harness.Options) registry.Registry {
	return etcd.NewRegistry(registry.Addrs(options.Endpoints...))
}

func list(options harness.Options) ([]harness.Endpoint, error) {
	services, err := build(options).GetService(options.Service)
	if err == registry.ErrNotFound {
		err = nil
	}
	endpoints := []harness.Endpoint{}
	for _, service := range services {
		for _, node := range service.Nodes {
			if node == nil { // a null in the list of nodes; go-micro's selectors would panic
				continue
			}
			endpoints = append(endpoints, harness.Endpoint{Address: node.Address, Enable: true, Metadata: node.Metadata})
		}
	}
	return endpoints, err
}

// watch follows the events alone, as a watcher does; go-micro's cache lists again once a minute.
func watch(options harness.Options, show func([]string)) error {
	watcher, err := build(options).Watch(registry.WatchService(options.Service))
	if err != nil {
		return err
	}
	show([]string{})
	known := map[string]string{}
	for {
		result, err := watcher.Next()
		if err != nil {
			return err
		}
		for _, node := range result.Service.Nodes {
			if result.Action == "delete" {
				delete(known, node.Id)
			} else {
				known[node.Id] = node.Address
			}
		}
		addresses := []string{}
		for _, address := range known {
			addresses = append(addresses, address)
		}
		show(addresses)
	}
}

func register(options harness.Options) (func() error, error) {
	metadata := map[string]string{"protocol": "grpc"}
	for key, value := range options.Metadata {
		metadata[key] = value
	}
	service := &registry.Service{
		Name: options.Service, Version: options.Metadata["version"], Metadata: map[string]string{}, Endpoints: []*registry.Endpoint{},
		Nodes: []*registry.Node{{Id: options.ID, Address: options.Address, Metadata: metadata}},
	}
	reg := build(options)
	return func() error { return reg.Deregister(service) }, reg.Register(service, registry.RegisterTTL(lifetime))
}
