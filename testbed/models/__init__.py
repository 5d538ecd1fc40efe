"""Models of etcd and of the API server: they run in an event loop, hold to the real ones, and break on command."""
