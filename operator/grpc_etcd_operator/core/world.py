"""Everything seen of Kubernetes, in memory, and who is affected when a part of it changes. Facts in, UIDs out; no I/O.

Level-triggered: a note changes the facts and returns the units (Pods and GrpcServices by UID) whose desired state may
have changed. What a unit ought to have is worked out only when a writer asks. A UID that is gone never comes back. An
unknown UID is not the same as one that is gone: only what is known to be gone may lose its records.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from grpc_etcd_operator.core.claims import find_taken
from grpc_etcd_operator.core.desired import Desired, Unit, make_pod_desired, make_service_desired
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.services import GrpcService

Label = tuple[str, str]


class Verdict(NamedTuple):
    """Whether a GrpcService is accepted; if not, why."""

    accepted: bool
    reason: str = "Accepted"
    message: str = ""


ACCEPTED = Verdict(accepted=True)


class World:
    """The Pods and GrpcServices seen so far. Not thread-safe: it lives in one event loop."""

    def __init__(self, registries: Iterable[str], *, shared_names: bool = False) -> None:
        """Take the names of the registries that the operator's settings have."""
        self._registries = frozenset(registries)
        self._shared_names = shared_names
        self.pods: dict[str, Pod] = {}
        self.services: dict[str, GrpcService] = {}
        self.gone: dict[str, Unit] = {}
        self._pods_of: dict[str, dict[str, Pod]] = {}
        self._by_label: dict[str, dict[Label | None, dict[str, GrpcService]]] = {}
        self._by_name: dict[str, dict[str, GrpcService]] = {}
        self._verdicts: dict[str, Verdict] = {}

    def __repr__(self) -> str:
        return f"<World pods={len(self.pods)} services={len(self.services)} gone={len(self.gone)}>"

    def note_pod(self, pod: Pod) -> bool:
        """Take a Pod as it now is; say whether that changed anything that matters."""
        if pod.uid in self.gone or self.pods.get(pod.uid) == pod:
            return False
        self.pods[pod.uid] = pod
        self._pods_of.setdefault(pod.namespace, {})[pod.uid] = pod
        return True

    def forget_pod(self, uid: str) -> bool:
        """Take it that a Pod is gone for good; say whether it was known."""
        pod = self.pods.pop(uid, None)
        if pod is None:
            return False
        del self._pods_of[pod.namespace][uid]
        self.gone[uid] = Unit(uid, pod.namespace, pod.name, pod.node)
        return True

    def note_service(self, service: GrpcService) -> set[str]:
        """Take a GrpcService as it now is; return all units that this may concern."""
        old = self.services.get(service.uid)
        if service.uid in self.gone:
            return set()
        self.services[service.uid] = service
        self._index(old, service)
        if old is not None and old.asks_the_same_as(service):
            return set()
        return self._affected(old, service)

    def forget_service(self, uid: str) -> set[str]:
        """Take it that a GrpcService is gone for good; return all units that this concerns."""
        old = self.services.pop(uid, None)
        if old is None:
            return set()
        self.gone[uid] = Unit(uid, old.namespace)
        self._verdicts.pop(uid, None)
        self._index(old, None)
        return self._affected(old, None)

    def mark_gone(self, unit: Unit) -> None:
        """Take it that a unit that was never seen alive is gone: its owner record is all that is left."""
        if unit.uid not in self.pods and unit.uid not in self.services:
            self.gone[unit.uid] = unit

    def verdict(self, uid: str) -> Verdict:
        """Say whether a GrpcService is accepted."""
        return self._verdicts.get(uid, ACCEPTED)

    def verdicts(self) -> Iterable[Verdict]:
        """Give the verdicts on all GrpcServices."""
        return self._verdicts.values()

    def selecting(self, pod: Pod) -> list[GrpcService]:
        """Give the GrpcServices that select a Pod, accepted or not."""
        by_label, labels = self._by_label.get(pod.namespace, {}), pod.labels
        candidates = [by_label[label] for label in (None, *labels.items()) if label in by_label]
        return [
            service
            for found in candidates
            for service in found.values()
            if service.spec and service.spec.selector.matches(labels)
        ]

    def accepted_for(self, pod: Pod) -> list[GrpcService]:
        """Give the accepted GrpcServices that select a Pod."""
        return [service for service in self.selecting(pod) if self.verdict(service.uid).accepted]

    def selected_by(self, service: GrpcService) -> Iterator[Pod]:
        """Give the Pods that a GrpcService selects."""
        spec = service.spec
        if spec is None:
            return iter(())
        pods = self._pods_of.get(service.namespace, {})
        return (pod for pod in pods.values() if spec.selector.matches(pod.labels))

    def desired(self, uid: str, registry: str) -> Desired | None:
        """Say what a unit ought to have in a registry; None means that nothing is known of it, so hands off."""
        if pod := self.pods.get(uid):
            return make_pod_desired(pod, self.accepted_for(pod), registry)
        if service := self.services.get(uid):
            return make_service_desired(service, registry, accepted=self.verdict(uid).accepted)
        if unit := self.gone.get(uid):
            return Desired(unit, gone=True)
        return None

    def is_withdrawn(self, uid: str) -> bool:
        """Say at a glance whether a unit's records probably have to go; it decides nothing but the order."""
        pod = self.pods.get(uid)
        return uid in self.gone or (pod is not None and (not pod.ready or pod.terminating))

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide between two living units that want one key: the newer Pod (addresses move), the older GrpcService."""
        pod, other = self.pods.get(uid), self.pods.get(rival)
        if pod and other:
            return (pod.created, pod.uid) > (other.created, other.uid)
        service, elder = self.services.get(uid), self.services.get(rival)
        if service and elder:
            return service.age_order < elder.age_order
        return pod is not None or service is not None

    def _affected(self, old: GrpcService | None, new: GrpcService | None) -> set[str]:
        """Judge anew all who share a name with a changed GrpcService; collect whoever is concerned."""
        concerned = [each for each in (old, new) if each]
        for name in {each.spec.registry_name for each in concerned if each.spec}:
            for sharer in self._by_name.get(name, {}).values():
                if self._judge(sharer) and sharer.uid not in {each.uid for each in concerned}:
                    concerned.append(sharer)
        if new:
            self._judge(new)
        units = {service.uid for service in concerned}
        for service in concerned:
            units.update(pod.uid for pod in self.selected_by(service))
        return units

    def _judge(self, service: GrpcService) -> bool:
        """Decide anew on one GrpcService; say whether the verdict changed."""
        verdict = self._make_verdict(service)
        changed = self._verdicts.get(service.uid) != verdict
        self._verdicts[service.uid] = verdict
        return changed

    def _make_verdict(self, service: GrpcService) -> Verdict:
        spec = service.spec
        if spec is None:
            return Verdict(accepted=False, reason="InvalidSpec", message="; ".join(service.faults))
        if unknown := [name for name in spec.registries if name not in self._registries]:
            known = ", ".join(sorted(self._registries))
            message = f"spec.registries names {', '.join(unknown)}; this operator knows {known}"
            return Verdict(accepted=False, reason="UnknownRegistry", message=message)
        if not self._shared_names:
            taken = find_taken(service, self._by_name.get(spec.registry_name, {}).values())
            if taken:
                message = f"the name {spec.registry_name} belongs to the older GrpcService {taken.holder}"
                return Verdict(accepted=False, reason="NameTaken", message=f"{message}; choose another spec.name")
        return ACCEPTED

    def _index(self, old: GrpcService | None, new: GrpcService | None) -> None:
        if old and old.spec:
            self._by_label[old.namespace][_index_key(old)].pop(old.uid, None)
            self._by_name[old.spec.registry_name].pop(old.uid, None)
        if new and new.spec:
            self._by_label.setdefault(new.namespace, {}).setdefault(_index_key(new), {})[new.uid] = new
            self._by_name.setdefault(new.spec.registry_name, {})[new.uid] = new


def _index_key(service: GrpcService) -> Label | None:
    """Choose the label under which a GrpcService is found; None where its selector names no exact label."""
    labels = service.spec.selector.labels if service.spec else ()
    return labels[0] if labels else None
