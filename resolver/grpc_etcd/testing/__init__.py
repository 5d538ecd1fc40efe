"""Test your own code without an etcd: a registry in memory that real channels follow.

    registry = grpc_etcd.testing.MemoryRegistry()
    registry.set_endpoints("greeter", "127.0.0.1:50051")
    with registry.insecure_channel("greeter") as channel:
        ...

It is a `grpc_etcd.Registry` in all but where its records are kept, and passes the same tests. With pytest, the fixture
`grpc_etcd_registry` gives one for each test and makes it the default registry meanwhile.
"""

from grpc_etcd.memory.store import MemoryEtcd
from grpc_etcd.testing.registry import MemoryRegistry, as_default

__all__ = ["MemoryEtcd", "MemoryRegistry", "as_default"]
