"""The only place that knows etcd's RPCs."""
