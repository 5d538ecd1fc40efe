"""What an admin sees of the operator: metrics, health, logs, certificates, and what to do about errors."""
