"""The only place that knows xDS."""
