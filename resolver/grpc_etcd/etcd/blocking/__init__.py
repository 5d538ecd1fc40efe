"""etcd for threads: a thin driver of the core."""
