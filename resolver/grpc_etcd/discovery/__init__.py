"""One service followed in etcd: what is known of it, what its channels are sent, and why."""
