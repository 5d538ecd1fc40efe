"""The only place that talks to Kubernetes, beside `sources`: credentials, lists, statuses, gates, Events."""
