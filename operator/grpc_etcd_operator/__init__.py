"""The operator: keeps a gRPC service registry in etcd true to the readiness of Pods."""
