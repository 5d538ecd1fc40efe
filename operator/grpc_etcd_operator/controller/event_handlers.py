"""Where facts of Kubernetes meet the writers of the registries. Every method is quick; all I/O happens elsewhere.

the watches, resyncs  ->  note_*  ->  World  ->  the owners concerned  ->  each controller's queue
controllers                 ->  take_outcome  ->  Tally  ->  statuses and gates that may have to be written
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from grpc_etcd_operator.controller.crd_return import CrdReturn
from grpc_etcd_operator.controller.deletions import Deletions
from grpc_etcd_operator.controller.gates import Gates, is_serving_for
from grpc_etcd_operator.controller.named_services import NamedServices
from grpc_etcd_operator.controller.open_claims import GRANT_SECONDS, OpenClaims
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.controller.registry_controller import RegistryController
from grpc_etcd_operator.controller.status_queue import StatusQueue
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.conditions import is_portless, is_same_judgement, reaches_registries
from grpc_etcd_operator.core.counts import EndpointCounts
from grpc_etcd_operator.core.desired import Desired, Owner
from grpc_etcd_operator.core.pods import Pod, PodMessage, parse_pod, take_out_of_scope
from grpc_etcd_operator.core.reasons import KEEPING, Reason
from grpc_etcd_operator.core.resync import ObjectRef
from grpc_etcd_operator.core.services import NO_ETCDS, GrpcService, parse_service
from grpc_etcd_operator.telemetry.metrics import Timings

log = logging.getLogger(__name__)
PODS, SERVICES = "pods", "grpcservices"


@dataclass(slots=True)
class Left:
    """The units that an object's news concern, and what a GrpcService was before the first of them."""

    was: GrpcService | None = None
    units: set[str] = field(default_factory=set)


class Unfinished:
    """What was taken of objects (by UID) and not passed on to the end, because something unforeseen failed in between.

    The event is tried again by whoever has reported it, and else by the next resync. Nothing in it is news to the cache
    any more then.
    """

    def __init__(self) -> None:
        self._left: dict[str, Left] = {}

    def __contains__(self, uid: str) -> bool:
        return uid in self._left

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._left))

    def was_service(self, uid: str) -> bool:
        """Return whether what is left is of a GrpcService that had been there before."""
        return uid in self._left and self._left[uid].was is not None

    def note(self, uids: Iterable[str]) -> None:
        """Record that something of these objects is yet to be passed on."""
        for uid in uids:
            self._left.setdefault(uid, Left())

    @contextmanager
    def passing_on(self, uid: str, was: GrpcService | None = None) -> Iterator[Left]:
        """Yield what concerns an object, with what is left of earlier tries; all of it is kept if the block fails."""
        yield self._left.setdefault(uid, Left(was))
        self._left.pop(uid, None)

    @contextmanager
    def adding(self, uid: str, was: GrpcService | None) -> Iterator[set[str]]:
        """Yield what concerns an object; it is left beside what was left before if the block fails, and only then."""
        units: set[str] = set()
        try:
            yield units
        except Exception:
            self._left.setdefault(uid, Left(was)).units |= units
            raise


class EventHandlers:
    """Notes facts and passes on who is concerned. Implements what watches, resyncs and writers ask for.

    `controllers` are the registries that are written; `blindness` says why a resource of a namespace is not seen.
    """

    def __init__(  # noqa: PLR0913  what is known, and who is concerned
        self,
        cluster_cache: ClusterCache,
        prefixes: Mapping[str, str | None],
        timings: Timings,
        etcds: Mapping[str, str] = NO_ETCDS,
        *,
        controllers: dict[str, RegistryController] | None = None,
        blindness: Callable[[str, str], str | None] = lambda _resource, _namespace: None,
        statuses: StatusQueue | None = None,
        claims: asyncio.Event | None = None,
        deletions: Deletions | None = None,
        grant_seconds: float = GRANT_SECONDS,
    ) -> None:
        self.statuses, self.claims = statuses or StatusQueue(cluster_cache), claims or asyncio.Event()
        self.deletions = deletions or Deletions()
        self.cluster_cache, self.endpoint_counts = cluster_cache, EndpointCounts()
        self.named_services = NamedServices(cluster_cache.references)
        self.controllers: dict[str, RegistryController] = {} if controllers is None else controllers
        self.complete: set[str] = set()
        self.unlisted: dict[str, frozenset[str]] = {}  # by resource: namespaces of which nothing is known
        self.broken_objects = 0
        self.unfinished = Unfinished()
        self.blindness = blindness
        self._prefixes, self._timings, self._etcds = prefixes, timings, etcds
        self.grants_in_memory = False  # for a dry run, which writes no status
        self.open_claims = OpenClaims(cluster_cache, self.controllers, etcds, grant_seconds=grant_seconds)
        self.crd_return = CrdReturn(self.controllers)
        self._gates = Gates(self)

    # -- facts of Kubernetes ----------------------------------------------------------------------------------------

    def note_pod(self, kind: str | None, message: PodMessage) -> None:
        """Take a Pod's watch event. One that is older than what a sweep has read since says nothing new."""
        uid, version = message.metadata.uid, message.metadata.resourceVersion
        if kind == "DELETED":
            self._note_end(message)
            return
        if kind is not None and self.has_newer_pod(uid, version):
            return
        if kind is None:  # a list of the watch, so newer than what it reported before: a backup may have been restored
            self.cluster_cache.gone.pop(uid, None)
        self.note_listed_pod(message)

    def note_listed_pod(self, message: PodMessage) -> None:
        """Take a Pod as it now is."""
        if pod := self._parse_pod(message):
            self._note_pod(pod)

    def note_out_of_scope(self, message: PodMessage) -> None:
        """Record that a Pod is none of this installation's any more, or not for now; it may well be alive."""
        if pod := self._parse_pod(message):
            self._note_pod(take_out_of_scope(pod))

    def _note_pod(self, pod: Pod) -> None:
        known = self.cluster_cache.pods.get(pod.uid)
        if self.cluster_cache.note_pod(pod) or (known and pod.uid in self.unfinished):
            with self.unfinished.passing_on(pod.uid):
                self._timings.observe(known, pod)
                self._pod_changed(pod)

    def _note_end(self, message: PodMessage) -> None:
        """Record that a Pod is gone for good, perhaps without news before that it was to end."""
        known = self.cluster_cache.pods.get(message.metadata.uid)
        if known and (last := self._parse_pod(message)) and last.terminating:
            self._timings.observe(known, last)
        self.forget_pod(message.metadata.uid)

    def _parse_pod(self, message: PodMessage) -> Pod | None:
        try:
            return parse_pod(message, self.cluster_cache.pods.get(message.metadata.uid))
        except ValueError:
            self.broken_objects += 1
            log.exception("Pod cannot be parsed, ignoring it", extra={"event": "pod_unreadable"})
            return None

    def forget_pod(self, uid: str) -> None:
        """Record that a Pod is gone for good."""
        pod = self.cluster_cache.pods.get(uid)
        if self.cluster_cache.forget_pod(uid) or uid in self.unfinished:
            with self.unfinished.passing_on(uid):
                if pod is None or pod.gated:
                    self.statuses.look_at_gate(uid)  # so that nothing is kept of it there
                self.statuses.look_at(self.endpoint_counts.note_selected(uid, {}))
                self._enqueue([uid], urgent=True)

    def has_pod(self, uid: str, version: str) -> bool:
        """Return whether a Pod is known in just this version, and as one that our selector finds."""
        known = self.cluster_cache.pods.get(uid)
        if known is None or known.outside or uid in self.unfinished:
            return False
        return bool(version) and known.resource_version == version

    def has_newer_pod(self, uid: str, version: str) -> bool:
        """Return whether a Pod is known in a later version: a watch that is late has still to report that."""
        known = self.cluster_cache.pods.get(uid)
        return known is not None and is_older(version, known.resource_version)

    def has_service(self, uid: str, version: str) -> bool:
        """Return whether it is the echo of what we wrote ourselves.

        Parsing it again costs as much as a registration.
        """
        known = self.cluster_cache.services.get(uid)
        if known is None or uid in self.unfinished:
            return False
        return bool(version) and known.resource_version == version

    def read_service(self, raw: Mapping[str, Any]) -> GrpcService:
        """Read a GrpcService as the settings have it read."""
        return parse_service(raw, self._prefixes, self._etcds)

    def note_service(self, kind: str | None, raw: Mapping[str, Any], *, is_ours: bool = False) -> None:
        """Take a GrpcService that we have read ourselves, or (`is_ours`) that was answered to what we wrote."""
        uid, version = raw["metadata"]["uid"], str(raw["metadata"].get("resourceVersion", ""))
        if kind in (None, "DELETED") or not self.has_service(uid, version):
            self.take_service(kind, self.read_service(raw), is_ours=is_ours)

    def take_service(self, kind: str | None, service: GrpcService, *, is_ours: bool = False) -> None:
        """Take a GrpcService's watch event. A deletion is only a hint: with its CRD every object goes.

        `is_ours` says that its status is what this replica has just written.
        """
        uid, version = service.uid, service.resource_version
        if kind not in (None, "DELETED") and (self.has_service(uid, version) or self._is_overtaken(uid, version)):
            return
        if kind is None:  # a list of the watch, so newer than what it reported before: a backup may have been restored
            self.cluster_cache.gone.pop(service.uid, None)
        if service.uid in self.cluster_cache.gone:
            return  # reported late; whatever has its name now is another
        if kind == "DELETED":
            if service.uid in self.cluster_cache.services:
                self.deletions.note(service)
            return
        self._pass_on_service(service, is_ours=is_ours)

    def _pass_on_service(self, service: GrpcService, *, is_ours: bool = False) -> None:
        uid = service.uid
        with self.unfinished.passing_on(uid, self.cluster_cache.services.get(uid)) as left:
            left.units |= self._take_service(service)
            self._follow([uid])
            self._services_changed(left.units)
            if left.was is None:
                for each in self._find_replaced(service):
                    self.forget_service(each)
            elif left.was.status != service.status:  # a backup was restored, or somebody else has written it
                self.statuses.look_at([uid])
                if not (is_ours or is_same_judgement(left.was.status, service.status)):
                    self._note_other_status(service)

    def _note_other_status(self, service: GrpcService) -> None:
        """Record that a status has been written that this replica did not write: it may speak no longer."""
        if not self.statuses.is_writing(service):
            for controller in self.controllers.values():
                controller.note_other_status(service, reaches=reaches_registries(service))

    def _take_service(self, service: GrpcService) -> set[str]:
        self.crd_return.note(service.reference)
        concerned = self.cluster_cache.note_service(service)
        self.named_services.note(service)
        if self.crd_return.is_awaited:  # and no more, perhaps, in its namespace, which gates there have waited for
            self._consider_gates(self.cluster_cache.pods_in(service.namespace))
        return concerned

    def follow_reference(self, uid: str) -> None:
        """Record that the Service which a GrpcService names is another, or that more or less is known of it."""
        if service := self.cluster_cache.services.get(uid):
            self._pass_on_service(service)

    def note_written(self, raw: Mapping[str, Any]) -> None:
        """Take the answer to a status that we have written: what comes now is older, what has come may be newer."""
        self.note_service("MODIFIED", raw, is_ours=True)

    def _is_overtaken(self, uid: str, version: str) -> bool:
        """Return whether an event is older than what an answer or a sweep has said since, such as a granted claim.

        What a list says (it has no kind) always counts: an API server that was restored counts from before.
        """
        known = self.cluster_cache.services.get(uid)
        return known is not None and is_older(version, known.resource_version)

    def _find_replaced(self, new: GrpcService) -> list[str]:
        """Find the GrpcService (by UID) in whose place a new one of the same name has come."""
        return [each.uid for each in self.cluster_cache.named(new.reference) if each.uid != new.uid]

    def forget_service(self, uid: str) -> None:
        """Record that a GrpcService is gone for good."""
        old = self.cluster_cache.services.get(uid)
        with self.unfinished.passing_on(uid, old) as left:
            left.units |= self._find_holders(old) if old else set()
            left.units |= self.cluster_cache.forget_service(uid)
            self._services_changed(left.units)
            self.open_claims.forget_refusal(uid)
            self.endpoint_counts.forget_service(uid)
            for controller in self.controllers.values():
                controller.unlearn(uid)
            self.statuses.look_at([uid])  # so that nothing is kept of it there

    def forget_owner(self, seen: ObjectRef, controller: RegistryController) -> None:
        """Record that the unit behind an owner record is gone for good, which was never seen alive."""
        with self.unfinished.passing_on(seen.uid):
            self.cluster_cache.mark_gone(_unit_of(seen, controller))
            self._enqueue([seen.uid], urgent=True)

    def finish(self, uid: str) -> None:
        """Pass on what is left of an object's news."""
        if pod := self.cluster_cache.pods.get(uid):
            with self.unfinished.passing_on(uid):
                self._pod_changed(pod)
        elif service := self.cluster_cache.services.get(uid):
            self._pass_on_service(service)
        elif self.unfinished.was_service(uid):
            self.forget_service(uid)
        else:
            self.forget_pod(uid)

    def mark_complete(self, resource: str, unlisted: Iterable[str] = ()) -> None:
        """Record that everything of a resource has been seen once, but in namespaces that may not be read.

        Those stay unknown, and with them all that is in them, until this is reported again without them.
        """
        before, self.unlisted[resource] = self.unlisted.get(resource, frozenset()), frozenset(unlisted)
        if newly := before - self.unlisted[resource]:
            pods = [pod for namespace in newly for pod in self.cluster_cache.pods_in(namespace)]
            self._enqueue([pod.uid for pod in pods])
            self._consider_gates(pods)
            self.statuses.look_at(
                [each.uid for each in self.cluster_cache.services.values() if each.namespace in newly]
            )
        if resource in self.complete:
            return
        self.complete.add(resource)
        if resource == PODS:
            self._timings.begin()
        log.info("Listed completely", extra={"event": "listed", "fields": {"resource": resource}})
        for controller in self.controllers.values():
            controller.writer.wake()
        if resource == SERVICES:
            self._services_changed(set())
        self._consider_gates(self.cluster_cache.pods.values())

    def _pod_changed(self, pod: Pod) -> None:
        services = self.cluster_cache.selecting(pod)
        ready = {each.uid: is_serving_for(pod, each) for each in services}
        changed = self.endpoint_counts.note_selected(pod.uid, ready)
        self.statuses.look_at(changed)
        urgent = not any(ready.values())
        for controller in self.controllers.values():
            # Whom nobody selects any more may be on its way to etcd, which no owner record reports yet.
            if services or changed or pod.uid in controller.registry_cache.owners:
                controller.enqueue([pod.uid], urgent=urgent)
        self._consider_gate(pod)

    def _services_changed(self, concerned: set[str]) -> None:
        if self.grants_in_memory and self.may_write():
            concerned = concerned | self._grant_in_memory()
        services = concerned & self.cluster_cache.services.keys()
        concerned = concerned.union(*(self._find_holders(self.cluster_cache.services[uid]) for uid in services))
        self.open_claims.note_asking(concerned)
        self._follow(services)  # ahead of their plans, which wait for what is not listed yet
        for uid in concerned:
            if pod := self.cluster_cache.pods.get(uid):
                ready = {each.uid: is_serving_for(pod, each) for each in self.cluster_cache.selecting(pod)}
                self.statuses.look_at(self.endpoint_counts.note_selected(uid, ready))
                self._consider_gate(pod)
        self.statuses.look_at(services)
        self._enqueue(concerned)
        if self.cluster_cache.asking or self.cluster_cache.releasing:
            self.claims.set()

    def _find_holders(self, service: GrpcService) -> set[str]:
        """Find the Pods that have records of a GrpcService, whoever selects them: what was kept may be so no longer."""
        caches, pods = [each.registry_cache for each in self.controllers.values()], self.cluster_cache.pods
        if any(cache.has_unnamed for cache in caches):  # they may be of anybody
            return {pod.uid for pod in self.cluster_cache.pods_in(service.namespace)}
        return {uid for cache in caches for uid in cache.owners_of(service.reference) if uid in pods}

    def _follow(self, services: Iterable[str]) -> None:
        """Let each registry follow what these GrpcServices write under; what others claim decides on that, too."""
        for uid, controller in product(services, self.controllers.values()):
            controller.learn(uid, self.cluster_cache.written_as(uid))

    def _grant_in_memory(self) -> set[str]:
        """Grant all claims that are asked for, the oldest GrpcService's first."""
        units: set[str] = set()
        while uid := self.cluster_cache.asking.next():
            service = self.cluster_cache.services[uid]
            claims = self.cluster_cache.begin_grant(uid, service.created)
            if claims is None:
                units |= self.cluster_cache.judge_again(uid)
            else:
                units |= self.cluster_cache.note_service(replace(service, status={**service.status, "claims": claims}))
                units.update(self.cluster_cache.end_grant(uid))
        return units

    # -- claims -----------------------------------------------------------------------------------------------------

    def begin_grant(self, uid: str, since: str) -> list[dict[str, str]] | None:
        """Reserve what a GrpcService asks for; None: somebody else was first."""
        claims = self.cluster_cache.begin_grant(uid, since)
        if claims is None:
            self._services_changed(self.cluster_cache.judge_again(uid))
        return claims

    def end_grant(self, uid: str) -> None:
        """Record that a grant was written or not."""
        with self.unfinished.adding(uid, self.cluster_cache.services.get(uid)) as units:
            units.update(self.cluster_cache.end_grant(uid))
            self._services_changed(units)

    def _consider_gate(self, pod: Pod) -> None:
        if pod.gated and not pod.gate_open and not pod.terminating and self._gates.judge(pod, {}):
            self.statuses.look_at_gate(pod.uid)

    def _consider_gates(self, pods: Iterable[Pod]) -> None:
        """Look at gates; where that fails at one, the others are still looked at: no event need ever come of them."""
        waiting = [pod for pod in pods if pod.gated and not pod.gate_open and pod.uid not in self.unfinished]
        self.unfinished.note(pod.uid for pod in waiting)
        for pod in waiting:
            with self.unfinished.passing_on(pod.uid):
                self._consider_gate(pod)

    def _enqueue(self, uids: Collection[str], *, urgent: bool = False) -> None:
        for controller in self.controllers.values():
            controller.enqueue(uids, urgent=urgent)

    # -- what writers ask and report ----------------------------------------------------------------------------------

    def desired(self, uid: str, registry: str) -> Desired | None:
        """Return what a unit ought to have in a registry; None means that it is not known."""
        pod = self.cluster_cache.pods.get(uid)
        if pod and not self.are_services_known(pod.namespace):
            return None
        desired = self.cluster_cache.desired(uid, registry)
        return self.crd_return.keep(desired, registry) if desired and pod and pod.is_serving() else desired

    def await_return(self) -> None:
        """Record that the CRD was missing when this process began: GrpcServices that have keys may come again."""
        if SERVICES not in self.complete:
            self.crd_return.begin(each.reference for each in self.cluster_cache.services.values())

    def is_return_awaited(self, namespace: str) -> bool:
        """Return whether GrpcServices of a namespace may come again with their CRD."""
        return self.crd_return.is_awaited_in(namespace)

    def end_return(self) -> None:
        """Record that whatever GrpcService has not come by now is gone for good."""
        self.crd_return.end()
        self._consider_gates(self.cluster_cache.pods.values())

    def are_services_known(self, namespace: str) -> bool:
        """Return whether the GrpcServices of a namespace have been listed."""
        return namespace not in self.unlisted.get(SERVICES, ())

    def why_unseen(self, resource: str, namespace: str) -> str | None:
        """Return why a resource of a namespace is not seen now; None: it is. Empty where that may pass by itself.

        What is in memory of it may be of yesterday then, or nothing.
        """
        found = self.blindness(resource, namespace)
        return "" if found is None and namespace in self.unlisted.get(resource, ()) else found

    def namespace_of(self, uid: str) -> str:
        """Name the namespace of a unit, also of one that is gone; empty where nothing is known of it."""
        cluster_cache = self.cluster_cache
        found = (known.get(uid) for known in (cluster_cache.pods, cluster_cache.services, cluster_cache.gone))
        return next((each.namespace for each in found if each), "")

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide between two living units that want one key."""
        return self.cluster_cache.outranks(uid, rival)

    def may_write(self) -> bool:
        """Return whether claims can be judged: all GrpcServices have been seen."""
        return SERVICES in self.complete

    def has_seen_all(self) -> bool:
        """Return whether all Pods and GrpcServices are known."""
        return self.complete >= {PODS, SERVICES}

    def may_ask_for(self, registry: str) -> bool:
        """Return whether GrpcServices may name a registry that is gone from the settings, so that its keys stay."""
        return registry not in self._etcds and (not self.has_seen_all() or self.cluster_cache.asks_for(registry))

    def has_open_claims(self, moment: float) -> bool:
        """Return whether GrpcServices that asked for claims by a moment (monotonic) wait for a grant in progress."""
        return self.open_claims.are_open(moment)

    def awaits_services(self) -> bool:
        """Return whether Services that GrpcServices name were never listed, so that not all is known that is wanted."""
        return self.named_services.are_awaited()

    def units(self) -> list[str]:
        """Name all Pods and GrpcServices that there are."""
        return [*self.cluster_cache.pods, *self.cluster_cache.services]

    def sources(self, uid: str) -> list[str]:
        """Name the GrpcServices (by UID) that a unit's records are of, or would be."""
        if pod := self.cluster_cache.pods.get(uid):
            return [each.uid for each in self.cluster_cache.selecting(pod)]
        return [uid] if uid in self.cluster_cache.services else []

    def take_outcome(self, registry: str, outcome: Outcome) -> None:
        """Take how far a unit is in a registry."""
        uid = outcome.uid
        pod = self.cluster_cache.pods.get(uid)
        services = self.cluster_cache.selecting(pod) if pod else []
        if pod or uid in self.cluster_cache.gone:
            serving = [each.uid for each in services if is_serving_for(pod, each)]
            found = {each: self.cluster_cache.registries_for(each, pod) for each in serving if pod}
            wanting = {each: names for each, names in found.items() if names}
            self.statuses.look_at(self.endpoint_counts.note_registered(uid, registry, outcome.written, wanting))
            standing = self._find_standing(registry, outcome)
            self.statuses.look_at(self.endpoint_counts.note_standing(uid, registry, standing))
        known = [each.uid for each in services] + ([uid] if uid in self.cluster_cache.services else [])
        # Others went meanwhile.
        faults = [each for each in outcome.faults if each.source in self.cluster_cache.services]
        self.statuses.look_at(self.endpoint_counts.note_faults(uid, registry, faults, known))
        if pod:
            self._consider_gate(pod)
        if outcome.plan:
            if pod or outcome.plan.gone or uid in self.cluster_cache.gone:  # it may go while its keys are deleted
                is_gone = pod is None or pod.terminating
                self._timings.note(registry, uid, outcome.plan, outcome.waited_seconds, gone=is_gone)
            _log_change(registry, self.cluster_cache, outcome)

    def _find_standing(self, registry: str, outcome: Outcome) -> frozenset[str]:
        """Find the GrpcServices whose keys of a unit stay though what they ask for cannot be obeyed."""
        controller = self.controllers.get(registry)
        owner = controller.registry_cache.owner(outcome.uid) if controller else None
        if owner is None:
            return frozenset()
        faulty = {fault.source for fault in outcome.faults if fault.reason in KEEPING}
        found = (each.uid for reference in owner.grpc_services for each in self.cluster_cache.named(reference))
        return frozenset(uid for uid in found if uid in faulty or not self.cluster_cache.verdict(uid).accepted)

    def count_unregistered(self, registry: str) -> int:
        """Count the Pods that are ready and not written there, of GrpcServices that are in force there and enabled.

        What is not accepted is counted by itself: no tenant is to raise this alarm by asking for what is another's. So
        are keys that somebody else holds: a server that registers itself is in the registry, as is a Pod whose key an
        older GrpcService of the same name writes. Who waits since its own namespace has written too much is no fault of
        the registry's, and has an alert of its own.
        """
        wanting = (uid for uid in self.cluster_cache.services if self.cluster_cache.is_enabled(uid, registry))
        written, excused = self.endpoint_counts.count_written(registry), self.endpoint_counts.count_excused(registry)
        return sum(max(0, self.endpoint_counts.counts(uid).ready - written[uid] - excused[uid]) for uid in wanting)

    def count_refusals(self) -> Counter[str]:
        """Count the GrpcServices of which the condition Accepted is false, by reason."""
        cluster_cache, counts = self.cluster_cache, self.endpoint_counts.counts
        accepted = (each for each in cluster_cache.services.values() if cluster_cache.verdict(each.uid).accepted)
        portless = (each for each in accepted if is_portless(counts(each.uid)))
        seen = [each for each in portless if not self.why_unseen(PODS, each.namespace)]
        return cluster_cache.count_refusals() + Counter({Reason.PORT_NOT_FOUND: len(seen)})

    def conflicts(self, registry: str) -> int:
        """Count keys and names that somebody else holds."""
        return self.cluster_cache.count_taken(registry) + self.endpoint_counts.count_faults(registry, Reason.KEY_TAKEN)

    def services_behind(self, uids: Iterable[str]) -> list[GrpcService]:
        """Find the GrpcServices that units have records of, in any registry."""
        owners = [controller.registry_cache.owner(uid) for uid in uids for controller in self.controllers.values()]
        references = {reference for owner in owners if owner for reference in owner.grpc_services}
        return [service for reference in sorted(references) for service in self.cluster_cache.named(reference)]


def is_older(version: str, other: str) -> bool:
    """Return whether one resourceVersion of an object is older than another; others than numbers cannot be."""
    return version.isdigit() and other.isdigit() and int(version) < int(other)


def _unit_of(seen: ObjectRef, controller: RegistryController) -> Owner:
    owner = controller.registry_cache.owner(seen.uid)
    return Owner(seen.uid, seen.namespace, owner.pod if owner else "", owner.node if owner else "")


def _log_change(registry: str, cluster_cache: ClusterCache, outcome: Outcome) -> None:
    plan = outcome.plan
    if plan is None or not log.isEnabledFor(logging.INFO):
        return
    pod = cluster_cache.pods.get(outcome.uid) or cluster_cache.gone.get(outcome.uid)
    fields = {
        "registry": registry,
        "namespace": pod.namespace if pod else "",
        "pod": getattr(pod, "name", "") or getattr(pod, "pod", ""),
        "lease": f"{plan.lease:x}",
        "put": [edit.key.decode(errors="replace") for edit in plan.puts],
        "deleted": [edit.key.decode(errors="replace") for edit in plan.deletes],
    }
    log.info(
        "Records written" if plan.puts else "Records deleted",
        extra={"event": "records_written" if plan.puts else "records_deleted", "fields": fields},
    )
