"""Where all keys of a GrpcService stay as they are, because nothing is known of what it wishes. Facts only, no I/O."""

from collections.abc import Iterable
from typing import NamedTuple

from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.services import GrpcService


class _Kept(NamedTuple):
    """In which registries, by what reference, and whether keys of Pods that are not ready are among them."""

    registries: frozenset[str]
    reference: str
    has_unready: bool


class KeptKeys:
    """Which GrpcServices keep what they have, by namespace."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, dict[str, _Kept]] = {}
        # By namespace, then by registry and whether a Pod is ready: what a thousand Pods ask is worked out once.
        self._answers: dict[str, dict[tuple[str, bool], frozenset[str]]] = {}

    def note(self, service: GrpcService, registries: Iterable[str]) -> None:
        """Record in which registries all keys of a GrpcService stay as they are; none: nowhere."""
        spec, kept = service.claimed, self._by_namespace.get(service.namespace, {})
        found = _Kept(frozenset(registries), service.reference, bool(spec and spec.publish_not_ready))
        if (not found.registries and service.uid not in kept) or kept.get(service.uid) == found:
            return
        self._answers.pop(service.namespace, None)
        if found.registries:
            self._by_namespace.setdefault(service.namespace, kept)[service.uid] = found
            return
        del kept[service.uid]
        if not kept:
            del self._by_namespace[service.namespace]

    def references(self, pod: Pod, registry: str) -> frozenset[str]:
        """Name the GrpcServices whose keys of a Pod stay as they are in a registry."""
        kept = self._by_namespace.get(pod.namespace)
        if not kept or not pod.is_serving(publish_not_ready=True):
            return frozenset()
        answers, is_ready = self._answers.setdefault(pod.namespace, {}), pod.is_serving()
        if (registry, is_ready) not in answers:
            found = (each for each in kept.values() if registry in each.registries and (is_ready or each.has_unready))
            answers[registry, is_ready] = frozenset(each.reference for each in found)
        return answers[registry, is_ready]
