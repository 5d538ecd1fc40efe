"""The only place that talks to Kubernetes: credentials, watches, lists, statuses, gates, Events; Kopf is used here."""
