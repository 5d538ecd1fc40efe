"""Test your own code without an etcd: a registry in memory that real channels follow.

    registry = grpc_etcd.testing.MemoryRegistry()
    registry.set_endpoints("greeter", "127.0.0.1:50051")
    with registry.insecure_channel("greeter") as channel:
        ...

It is a `grpc_etcd.Registry` whose records are in memory, and passes the same tests. With pytest, the fixture
`grpc_etcd_registry` is a new one for each test, and the default registry during the test.
"""

from grpc_etcd.memory.store import MemoryEtcd
from grpc_etcd.testing.registry import MemoryRegistry, as_default

__all__ = ["MemoryEtcd", "MemoryRegistry", "as_default"]
