"""What a type checker must refuse, line by line: the code that it is refused with stands behind it."""

import grpc

import grpc_etcd


def wrong(registry: grpc_etcd.Registry, both: grpc_etcd.CompoundRegistry, server: grpc.aio.Server) -> None:
    grpc_etcd.Registry()  # wrong: call-arg
    grpc_etcd.Registry("etcd:2379", prefx="p")  # wrong: call-arg
    grpc_etcd.Registry("etcd:2379", zone=1)  # wrong: arg-type
    grpc_etcd.StaticRegistry({"greeter": 50051})  # wrong: dict-item
    registry.on_change("greeter", 3)  # wrong: arg-type
    registry.insecure_channel(b"greeter")  # wrong: arg-type
    registry.secure_channel("greeter")  # wrong: call-arg
    registry.aio.insecure_channel("greeter").close()  # wrong: unused-coroutine
    _ = registry.endpoints("greeter").addresses  # wrong: attr-defined
    registry.configure("greeter", retry=3)  # wrong: call-arg
    registry.configure("greeter", grpc_etcd.Policy(retry=3))  # wrong: arg-type
    grpc_etcd.LoadBalancing(type="round_robin")  # wrong: arg-type
    grpc_etcd.Endpoint(address="10.0.0.1:1")  # wrong: call-arg
    grpc_etcd.Endpoint(name="greeter", address="10.0.0.1:1").weight = 3  # wrong: misc
    registry.register("10.0.0.1:1")  # wrong: arg-type
    registry.unregister("10.0.0.1:1")  # wrong: arg-type
    registry.bind(server, "greeter")  # wrong: arg-type
    both.register(grpc_etcd.Endpoint(name="greeter", address="10.0.0.1:1")).wait()  # wrong: attr-defined
    for snapshot in registry.aio.watch_services("greeter"):  # wrong: attr-defined
        registry.list_services(snapshot.service)
    grpc_etcd.SnapShot()  # wrong: attr-defined
