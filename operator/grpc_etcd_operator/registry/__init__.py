"""One etcd as the operator uses it: who leads, what stands there, leases, and the synced key. Nothing of Kubernetes."""
