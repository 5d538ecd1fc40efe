"""Where commands begin. It stands beside `grpc_etcd`, since whatever is within that imports the package first."""
