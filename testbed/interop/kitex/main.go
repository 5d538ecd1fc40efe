// kitex' own etcd registry and resolver; its clients poll the resolver each 5 s, here each 100 ms.
package main

import (
	"context"
	"time"

	"github.com/cloudwego/kitex/pkg/discovery"
	"github.com/cloudwego/kitex/pkg/registry"
	"github.com/cloudwego/kitex/pkg/utils"
	etcd "github.com/kitex-contrib/registry-etcd"

	"grpc-etcd/testbed/interop/lib/harness"
)

func main() {
	harness.Main(harness.Program{List: list, Watch: watch, Register: register})
}

func list(options harness.Options) ([]harness.Endpoint, error) {
	resolver, err := etcd.NewEtcdResolver(options.Endpoints)
	if err != nil {
		return nil, err
	}
	result, err := resolver.Resolve(context.Background(), options.Service)
	return read(result), err
}

func read(result discovery.Result) []harness.Endpoint {
	endpoints := []harness.Endpoint{}
	for _, instance := range result.Instances {
		metadata := map[string]string{}
		for _, name := range []string{"team", "version"} {
			if value, ok := instance.Tag(name); ok {
				metadata[name] = value
			}
		}
		endpoints = append(endpoints, harness.Endpoint{
			Address: instance.Address().String(), Weight: float64(instance.Weight()), Enable: true, Metadata: metadata,
		})
	}
	return endpoints
}

func watch(options harness.Options, show func([]string)) error {
	resolver, err := etcd.NewEtcdResolver(options.Endpoints)
	if err != nil {
		return err
	}
	for ; ; time.Sleep(100 * time.Millisecond) {
		result, err := resolver.Resolve(context.Background(), options.Service)
		addresses := []string{}
		if err == nil {
			for _, endpoint := range read(result) {
				addresses = append(addresses, endpoint.Address)
			}
		}
		show(addresses)
	}
}

func register(options harness.Options) (func() error, error) {
	reg, err := etcd.NewEtcdRegistry(options.Endpoints)
	if err != nil {
		return nil, err
	}
	info := &registry.Info{
		ServiceName: options.Service, Addr: utils.NewNetAddr("tcp", options.Address), Weight: options.Weight, Tags: options.Metadata,
	}
	return func() error { return reg.Deregister(info) }, reg.Register(info)
}
