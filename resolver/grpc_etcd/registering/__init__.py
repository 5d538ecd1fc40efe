"""Register endpoints from inside a process, for servers outside Kubernetes, and keep them registered.

Pure: `address` (what may be published), `claims` (what to do about one record), `processes` (who shares an address),
`keeper` (the next step), `transitions` (what the log says). Edges: `driver` (one thread, one lease and one watch per
registry), `registrar` (what callers hold), `bound` (servers, from their start to their stop), `health` (whether one
serves).
"""
