// go-zero's own publisher, subscriber and zRPC client.
package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/zrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"grpc-etcd/testbed/interop/lib/harness"
)

func main() {
	logx.Disable()
	harness.Main(harness.Program{List: list, Watch: watch, Register: register, Dial: dial})
}

func list(options harness.Options) ([]harness.Endpoint, error) {
	subscriber, err := discov.NewSubscriber(options.Endpoints, options.Service)
	if err != nil {
		return nil, err
	}
	endpoints := []harness.Endpoint{}
	for _, address := range subscriber.Values() {
		endpoints = append(endpoints, harness.Endpoint{Address: address, Enable: true})
	}
	return endpoints, nil
}

func watch(options harness.Options, show func([]string)) error {
	subscriber, err := discov.NewSubscriber(options.Endpoints, options.Service)
	if err != nil {
		return err
	}
	subscriber.AddListener(func() { show(subscriber.Values()) })
	show(subscriber.Values())
	select {}
}

func register(options harness.Options) (func() error, error) {
	choices := []discov.PubOption{}
	if options.ID != "" {
		id, err := strconv.ParseInt(options.ID, 10, 64)
		if err != nil {
			return nil, err
		}
		choices = append(choices, discov.WithId(id))
	}
	publisher := discov.NewPublisher(options.Endpoints, options.Service, options.Address, choices...)
	return func() error { publisher.Stop(); return nil }, publisher.KeepAlive()
}

func dial(options harness.Options) (harness.Call, error) {
	target := fmt.Sprintf("etcd:///%s?key=%s", strings.Join(options.Endpoints, ","), options.Service)
	client, err := zrpc.NewClientWithTarget(target, zrpc.WithNonBlock())
	if err != nil {
		return nil, err
	}
	health := grpc_health_v1.NewHealthClient(client.Conn())
	return func(ctx context.Context) (string, error) {
		var from peer.Peer
		_, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&from))
		if err != nil {
			return "", err
		}
		return from.Addr.String(), nil
	}, nil
}
