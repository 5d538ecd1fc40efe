"""Register endpoints from inside a process, for servers outside Kubernetes, and keep them registered.

Pure: `address` (what may be published), `claims` (what to do about one record), `keeper` (the next step). Edges:
`registrar` (one daemon thread and one lease per registry), `serving` (registered from a server's start to its stop).
"""
