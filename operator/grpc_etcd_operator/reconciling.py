"""Where facts of Kubernetes meet the writers of the registries. Every method is quick; all I/O happens elsewhere.

the watches, sweeps  ->  note_*  ->  World  ->  the units concerned  ->  each station's queue
stations                 ->  take_outcome  ->  Tally  ->  statuses and gates that may have to be written
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from grpc_etcd_operator.core.desired import Desired, Unit
from grpc_etcd_operator.core.pods import Pod, parse_pod
from grpc_etcd_operator.core.services import GrpcService, parse_service
from grpc_etcd_operator.core.sweeps import Seen
from grpc_etcd_operator.core.tally import Tally
from grpc_etcd_operator.core.world import World
from grpc_etcd_operator.metrics import Timings
from grpc_etcd_operator.writer.station import Station
from grpc_etcd_operator.writer.writing import Outcome

log = logging.getLogger(__name__)
PODS, SERVICES = "pods", "grpcservices"


class Reconciler:
    """Notes facts and passes on who is concerned. Implements what watches, sweeps and writers ask for."""

    def __init__(self, world: World, prefixes: Mapping[str, str | None], timings: Timings) -> None:
        self.world, self.tally = world, Tally()
        self.stations: dict[str, Station] = {}
        self.complete: set[str] = set()
        self.broken_objects = 0
        self._prefixes, self._timings = prefixes, timings
        self.on_status: Callable[[Collection[str]], None] = _ignore
        self.on_gate: Callable[[str], None] = _ignore
        self.on_service_deleted: Callable[[GrpcService], None] = _ignore

    # -- facts of Kubernetes ----------------------------------------------------------------------------------------

    def note_pod(self, kind: str | None, message: Any) -> None:
        """Take a Pod's watch event."""
        if kind == "DELETED":
            self.forget_pod(message.metadata.uid)
            return
        try:
            pod = parse_pod(message, self.world.pods.get(message.metadata.uid))
        except ValueError:
            self.broken_objects += 1
            log.exception("a Pod could not be read")
            return
        if self.world.note_pod(pod):
            self._pod_changed(pod)

    def forget_pod(self, uid: str) -> None:
        """Take it that a Pod is gone for good."""
        if self.world.forget_pod(uid):
            self.on_status(self.tally.note_selected(uid, {}))
            self._enqueue([uid], urgent=True)

    def note_service(self, kind: str | None, raw: Mapping[str, Any]) -> None:
        """Take a GrpcService's watch event. A deletion is only a hint: with its CRD every object goes."""
        if kind != "DELETED" and self._is_known(raw["metadata"]):
            return
        service = parse_service(raw, self._prefixes)
        if service.uid in self.world.gone:
            return  # told late; whatever has its name now is another
        if kind == "DELETED":
            if service.uid in self.world.services:
                self.on_service_deleted(service)
            return
        for station in self.stations.values():
            station.learn(service)
        replaced = [] if service.uid in self.world.services else self._find_replaced(service)
        self._services_changed(self.world.note_service(service))
        for uid in replaced:
            self.forget_service(uid)

    def _is_known(self, metadata: Mapping[str, Any]) -> bool:
        """Say whether it is the echo of what we wrote ourselves: parsing it again costs as much as a registration."""
        known, version = self.world.services.get(metadata["uid"]), metadata.get("resourceVersion")
        return known is not None and bool(version) and known.resource_version == version

    def _find_replaced(self, new: GrpcService) -> list[str]:
        """Find the GrpcService (by UID) in whose place a new one of the same name has come."""
        return [each.uid for each in self.world.services.values() if each.reference == new.reference]

    def forget_service(self, uid: str) -> None:
        """Take it that a GrpcService is gone for good."""
        self._services_changed(self.world.forget_service(uid))
        self.tally.forget_service(uid)
        self.on_status([uid])  # so that nothing is kept of it there

    def forget_owner(self, seen: Seen, station: Station) -> None:
        """Take it that the unit behind an owner record is gone for good, which was never seen alive."""
        self.world.mark_gone(_unit_of(seen, station))
        self._enqueue([seen.uid], urgent=True)

    def mark_complete(self, resource: str) -> None:
        """Take it that everything of a resource has been seen once."""
        if resource in self.complete:
            return
        self.complete.add(resource)
        log.info("a complete list has been seen", extra={"fields": {"resource": resource}})
        for station in self.stations.values():
            station.writer.wake()
        for pod in list(self.world.pods.values()):
            self._consider_gate(pod)

    def _pod_changed(self, pod: Pod) -> None:
        services = self.world.selecting(pod)
        ready = {each.uid: _is_serving(pod, each) for each in services}
        self.on_status(self.tally.note_selected(pod.uid, ready))
        urgent = not any(ready.values())
        for station in self.stations.values():
            if services or pod.uid in station.mirror.owners:
                station.enqueue([pod.uid], urgent=urgent)
        self._consider_gate(pod)

    def _services_changed(self, concerned: set[str]) -> None:
        for uid in concerned:
            if pod := self.world.pods.get(uid):
                ready = {each.uid: _is_serving(pod, each) for each in self.world.selecting(pod)}
                self.on_status(self.tally.note_selected(uid, ready))
                self._consider_gate(pod)
        self.on_status(concerned & self.world.services.keys())
        self._enqueue(concerned)

    def _enqueue(self, uids: Iterable[str], *, urgent: bool = False) -> None:
        for station in self.stations.values():
            station.enqueue(uids, urgent=urgent)

    # -- what writers ask and tell ----------------------------------------------------------------------------------

    def desired(self, uid: str, registry: str) -> Desired | None:
        """Say what a unit ought to have in a registry."""
        return self.world.desired(uid, registry)

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide between two living units that want one key."""
        return self.world.outranks(uid, rival)

    def may_write(self) -> bool:
        """Say whether claims can be judged: all GrpcServices have been seen."""
        return SERVICES in self.complete

    def has_seen_all(self) -> bool:
        """Say whether all Pods and GrpcServices are known."""
        return self.complete >= {PODS, SERVICES}

    def take_outcome(self, registry: str, outcome: Outcome) -> None:
        """Take how far a unit is in a registry."""
        uid = outcome.uid
        pod = self.world.pods.get(uid)
        services = self.world.selecting(pod) if pod else []
        if pod or uid in self.world.gone:
            wanting = {each.uid: each.spec.registries for each in services if each.spec and _is_serving(pod, each)}
            self.on_status(self.tally.note_registered(uid, registry, outcome.written, wanting))
        known = [each.uid for each in services] + ([uid] if uid in self.world.services else [])
        self.on_status(self.tally.note_faults(uid, registry, outcome.faults, known))
        if pod:
            self._consider_gate(pod)
        if outcome.plan:
            self._timings.note(registry, pod, outcome.plan)
            _log_change(registry, self.world, outcome)

    def conflicts(self, registry: str) -> int:
        """Count keys and names that somebody else holds."""
        taken = sum(not verdict.accepted and verdict.reason == "NameTaken" for verdict in self.world.verdicts())
        return taken + self.tally.count_faults(registry, "KeyTaken")

    def services_behind(self, uids: Iterable[str]) -> list[GrpcService]:
        """Find the GrpcServices that units have records of, in any registry."""
        owners = [station.mirror.owner(uid) for uid in uids for station in self.stations.values()]
        references = {reference for owner in owners if owner for reference in owner.grpc_services}
        return [service for service in self.world.services.values() if service.reference in references]

    # -- readiness gates --------------------------------------------------------------------------------------------

    def _consider_gate(self, pod: Pod) -> None:
        if pod.gated and not pod.gate_open and not pod.terminating and self.is_gate_due(pod):
            self.on_gate(pod.uid)

    def is_gate_due(self, pod: Pod) -> bool:
        """Say whether a Pod's gate may open: all its keys are written, or there is nothing to wait for."""
        if not self.has_seen_all():
            return False
        wanted = [each for each in self.world.accepted_for(pod) if each.spec and each.spec.enable]
        return all(self.tally.is_registered(pod.uid, each.uid) for each in wanted)


def _ignore(_: Any) -> None:
    """Stand in until the composition root connects something."""


def _is_serving(pod: Pod | None, service: GrpcService) -> bool:
    return bool(pod and service.spec and pod.is_serving(publish_not_ready=service.spec.publish_not_ready))


def _unit_of(seen: Seen, station: Station) -> Unit:
    owner = station.mirror.owner(seen.uid)
    return Unit(seen.uid, seen.namespace, owner.pod if owner else "", owner.node if owner else "")


def _log_change(registry: str, world: World, outcome: Outcome) -> None:
    plan = outcome.plan
    if plan is None or not log.isEnabledFor(logging.INFO):
        return
    pod = world.pods.get(outcome.uid) or world.gone.get(outcome.uid)
    fields = {
        "registry": registry,
        "namespace": pod.namespace if pod else "",
        "pod": getattr(pod, "name", "") or getattr(pod, "pod", ""),
        "lease": f"{plan.lease:x}",
        "put": [edit.key.decode(errors="replace") for edit in plan.puts],
        "deleted": [edit.key.decode(errors="replace") for edit in plan.deletes],
    }
    log.info("written" if plan.puts else "withdrawn", extra={"fields": fields})
