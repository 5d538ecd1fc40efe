"""A model of etcd in memory, for static registries and for tests; it passes the contract tests of the etcd client."""
