"""Register endpoints from inside a process, for servers outside Kubernetes, and keep them registered.

Pure: `address` (what may be published), `records` (what to do about one record), `processes` (who shares an
address), `reconciler` (the next step), `transitions` (what the log says). Edges: `worker` (one thread, one lease and
one watch per registry), `registrar` (what callers hold), `server` (servers, from their start to their stop), `health`
(whether one serves), `loop_end` (what becomes of one whose event loop ends).
"""
