"""The test bed: real etcd, Kubernetes API server and gRPC servers on loopback, for tests, demo and benchmarks."""
