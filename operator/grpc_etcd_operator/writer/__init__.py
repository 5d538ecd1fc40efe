"""The etcd side of the operator: per registry one mirror, one election, one queue. Knows no Kubernetes."""
