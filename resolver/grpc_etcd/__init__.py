"""Follow a gRPC service registry in etcd: native channels by service name, and a registry client in its own right."""
