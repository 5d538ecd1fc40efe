"""The only place that talks to Kubernetes: credentials, watches through Kopf, lists, statuses, gates, Events."""
