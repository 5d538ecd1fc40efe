"""Who delivers the objects of Kubernetes. Nothing here knows etcd, nor what is concluded from what is delivered."""
