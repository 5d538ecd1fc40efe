module grpc-etcd/testbed/interop/lib/harness

go 1.20
