"""What Kubernetes does not allow in a namespace: reported once, counted, and asked for again only after a while.

A permission that the admin has not granted is no fault that a retry at once could fix, and one Pod's refusal speaks for
all Pods of its namespace.
"""

import logging

log = logging.getLogger(__name__)
REFUSED_SECONDS = 60.0  # how soon a permission is noticed that was granted meanwhile. Arbitrary


class GateRefusals:
    """Remembers in which namespaces gates may not be opened. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._until: dict[str, float] = {}

    def until(self, namespace: str) -> float:
        """Return until when nothing is tried there; 0 for no time at all."""
        return self._until.get(namespace, 0.0)

    def note(self, namespace: str, now: float) -> float:
        """Take a refusal; return when to try again."""
        self.count += 1
        if namespace not in self._until:
            log.warning(
                "Pods of the namespace %s wait for their readiness gate, which the operator is not allowed to "
                "open: grant its ServiceAccount permission to patch pods/status there (in the chart "
                "readinessGate.enabled and readinessGate.namespaces), or remove the gate grpc-etcd.dev/registered from "
                "the Pods",
                namespace,
                extra={"event": "gate_refused"},
            )
        self._until[namespace] = now + REFUSED_SECONDS
        return self._until[namespace]

    def end(self, namespace: str) -> None:
        """Take a success."""
        self._until.pop(namespace, None)
