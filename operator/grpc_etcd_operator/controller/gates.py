"""Judges Pods' readiness gates from what is known of Kubernetes and of the registries (core/gates.py has the law)."""

from collections.abc import Mapping
from typing import Protocol

from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.counts import EndpointCounts
from grpc_etcd_operator.core.gates import Claimant, Gate, judge_gate
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.reasons import HARMLESS, Reason
from grpc_etcd_operator.core.services import GrpcService

SERVICES = "grpcservices"
GATE_SECONDS = 30.0  # for which a Pod may be ready except for our gate before the metric counts it. Arbitrary


class Known(Protocol):
    """What gates are judged by."""

    @property
    def cluster_cache(self) -> ClusterCache:
        """What is known of Kubernetes."""

    @property
    def endpoint_counts(self) -> EndpointCounts:
        """What is known of the registries."""

    def has_seen_all(self) -> bool:
        """Return whether all Pods and GrpcServices are known."""

    def are_services_known(self, namespace: str) -> bool:
        """Return whether the GrpcServices of a namespace have been listed."""

    def why_unseen(self, resource: str, namespace: str) -> str | None:
        """Return why a resource of a namespace is not seen now; None: it is."""

    def is_return_awaited(self, namespace: str) -> bool:
        """Return whether GrpcServices of a namespace may come again with their CRD."""


class Gates:
    """The gates of all Pods."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def judge(self, pod: Pod, down: Mapping[str, str]) -> Gate | None:
        """Return what a Pod's gate ought to be; None while nobody can know, or the Pod itself is not ready.

        `down` names the registries that cannot be written, and why.
        """
        if not self._known.has_seen_all() or not self._known.are_services_known(pod.namespace):
            return None
        found = {
            each.uid: each
            for each in (*self._known.cluster_cache.refused_for(pod), *self._known.cluster_cache.selecting(pod))
        }
        selecting = [each for each in found.values() if each.asked and each.asked.enable]
        if not selecting and (
            self._known.why_unseen(SERVICES, pod.namespace) or self._known.is_return_awaited(pod.namespace)
        ):
            return None  # there may be one that is not seen
        if any(not is_serving_for(pod, each) for each in selecting):
            return None
        unavailable = [
            f"{name}: {down[name]}"
            for each in selecting
            for name in self._known.cluster_cache.registries_for(each.uid, pod)
            if name in down
        ]
        return judge_gate([self._make_claimant(pod, each) for each in selecting], "; ".join(dict.fromkeys(unavailable)))

    def _make_claimant(self, pod: Pod, service: GrpcService) -> Claimant:
        registries = self._known.cluster_cache.registries_for(service.uid, pod)
        verdict = self._known.cluster_cache.verdict(service.uid)
        if not registries:
            is_pending = verdict.reason is Reason.PENDING
            return Claimant(service.reference, *(() if is_pending else (verdict.reason, verdict.message)))
        if self._known.endpoint_counts.is_registered(pod.uid, service.uid):
            return Claimant(service.reference, is_registered=True)
        faults = self._known.endpoint_counts.faults_of(pod.uid, service.uid, registries)
        fault = next((each for each in faults if each.reason not in HARMLESS), None)
        return Claimant(service.reference, *((fault.reason, fault.message) if fault else ()))

    def count_waiting(self, now: float) -> int:
        """Count the Pods that have been ready except for our readiness gate for longer than any registration takes."""
        pods = self._known.cluster_cache.pods.values()
        waiting = (pod for pod in pods if pod.gated and pod.ready and not (pod.gate_open or pod.terminating))
        return sum(now - pod.since > GATE_SECONDS for pod in waiting)


def is_serving_for(pod: Pod | None, service: GrpcService) -> bool:
    """Return whether a Pod is ready by what a GrpcService asks for."""
    spec = service.spec or service.draft
    return bool(pod and spec and pod.is_serving(publish_not_ready=spec.publish_not_ready))
