"""The wire contract that the operator and the client library share: endpoints, layouts, snapshots. Pure: no I/O."""
