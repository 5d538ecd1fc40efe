"""Where facts of Kubernetes meet the writers of the registries. Every method is quick; all I/O happens elsewhere.

the watches, sweeps  ->  note_*  ->  World  ->  the units concerned  ->  each station's queue
stations                 ->  take_outcome  ->  Tally  ->  statuses and gates that may have to be written
"""

import asyncio
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from grpc_etcd_operator.controller.deletions import Deletions
from grpc_etcd_operator.controller.gates import Gates, is_serving_for
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.controller.registry_controller import Station
from grpc_etcd_operator.controller.status_queue import StatusQueue
from grpc_etcd_operator.core.claims import Claim, claims_of, read_claims
from grpc_etcd_operator.core.cluster import World
from grpc_etcd_operator.core.conditions import PORTLESS, is_portless, is_same_judgement
from grpc_etcd_operator.core.counts import KEY_TAKEN, Tally
from grpc_etcd_operator.core.desired import KEEPING, Desired, Unit, leads_elsewhere
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.pods import Pod, PodMessage, parse_pod, take_out_of_scope
from grpc_etcd_operator.core.resync import Seen
from grpc_etcd_operator.core.services import NO_ETCDS, GrpcService, parse_service
from grpc_etcd_operator.telemetry.metrics import Timings

log = logging.getLogger(__name__)
PODS, SERVICES = "pods", "grpcservices"
GRANT_SECONDS = 30.0  # so long after the last grant is waited for claims that nobody grants. Arbitrary


class Reconciler:
    """Notes facts and passes on who is concerned. Implements what watches, sweeps and writers ask for.

    `stations` are the registries that are written; `blindness` says why a resource of a namespace is not seen.
    """

    def __init__(  # noqa: PLR0913  what is known, and who is concerned
        self,
        world: World,
        prefixes: Mapping[str, str | None],
        timings: Timings,
        etcds: Mapping[str, str] = NO_ETCDS,
        *,
        stations: dict[str, Station] | None = None,
        blindness: Callable[[str, str], str | None] = lambda _resource, _namespace: None,
        statuses: StatusQueue | None = None,
        claims: asyncio.Event | None = None,
        deletions: Deletions | None = None,
        grant_seconds: float = GRANT_SECONDS,
    ) -> None:
        self.statuses, self.claims = statuses or StatusQueue(world), claims or asyncio.Event()
        self.deletions = deletions or Deletions()
        self.world, self.tally = world, Tally()
        self.stations: dict[str, Station] = {} if stations is None else stations
        self.complete: set[str] = set()
        self.unlisted: dict[str, frozenset[str]] = {}  # by resource: namespaces of which nothing is known
        self.broken_objects = 0
        self.blindness = blindness
        self._prefixes, self._timings, self._etcds = prefixes, timings, etcds
        self.grants_in_memory = False  # for a dry run, which writes no status
        self._echoes: dict[str, str] = {}
        self._asking: set[str] = set()
        self._asked_at: dict[str, tuple[int, float]] = {}  # with the generation that asks
        self._granted_at, self._grant_seconds = 0.0, grant_seconds
        self._refused_grants: set[str] = set()
        self._returned: set[str] | None = None  # the GrpcServices (by reference) that came, while others are awaited
        self._awaited: tuple[tuple[int, ...], set[str]] = (), set()  # the others' namespaces, and as of when
        self._gates = Gates(self)
        self._keys: dict[str, tuple[int | None, dict[str, list[bytes]]]] = {}

    # -- facts of Kubernetes ----------------------------------------------------------------------------------------

    def note_pod(self, kind: str | None, message: PodMessage) -> None:
        """Take a Pod's watch event."""
        if kind == "DELETED":
            self.forget_pod(message.metadata.uid)
            return
        if kind is None:  # a list of the watch, so newer than what it told before: a backup may have been restored
            self.world.gone.pop(message.metadata.uid, None)
        self.note_listed_pod(message)

    def note_listed_pod(self, message: PodMessage) -> None:
        """Take a Pod as it now is."""
        if pod := self._parse_pod(message):
            self._note_pod(pod)

    def note_out_of_scope(self, message: PodMessage) -> None:
        """Take it that a Pod is none of this installation's any more, or not for now; it may well be alive."""
        if pod := self._parse_pod(message):
            self._note_pod(take_out_of_scope(pod))

    def _note_pod(self, pod: Pod) -> None:
        known = self.world.pods.get(pod.uid)
        if self.world.note_pod(pod):
            self._timings.hear(known, pod)
            self._pod_changed(pod)

    def _parse_pod(self, message: PodMessage) -> Pod | None:
        try:
            return parse_pod(message, self.world.pods.get(message.metadata.uid))
        except ValueError:
            self.broken_objects += 1
            log.exception("a Pod could not be read", extra={"event": "pod_unreadable"})
            return None

    def forget_pod(self, uid: str) -> None:
        """Take it that a Pod is gone for good."""
        pod = self.world.pods.get(uid)
        if pod and self.world.forget_pod(uid):
            if pod.gated:
                self.statuses.look_at_gate(uid)  # so that nothing is kept of it there
            self.statuses.look_at(self.tally.note_selected(uid, {}))
            self._enqueue([uid], urgent=True)

    def has_pod(self, uid: str, version: str) -> bool:
        """Say whether a Pod is known in just this version, and as one that our selector finds."""
        known = self.world.pods.get(uid)
        return known is not None and bool(version) and known.resource_version == version and not known.outside

    def has_service(self, uid: str, version: str) -> bool:
        """Say whether it is the echo of what we wrote ourselves: parsing it again costs as much as a registration."""
        known = self.world.services.get(uid)
        return known is not None and bool(version) and known.resource_version == version

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
        if kind is None:
            self._echoes.pop(uid, None)
        elif kind != "DELETED" and (self.has_service(uid, version) or self._is_overtaken(uid, version)):
            return
        if kind is None:  # a list of the watch, so newer than what it told before: a backup may have been restored
            self.world.gone.pop(service.uid, None)
        if service.uid in self.world.gone:
            return  # told late; whatever has its name now is another
        if kind == "DELETED":
            if service.uid in self.world.services:
                self.deletions.note(service)
            return
        replaced = [] if service.uid in self.world.services else self._find_replaced(service)
        was = self.world.services.get(service.uid)
        concerned = self._take_service(service)
        self._follow([service.uid])  # also where an earlier try has failed in here, and nothing is new any more
        self._services_changed(concerned)
        if was and was.status != service.status:  # a backup was restored, or somebody else has written it
            self.statuses.look_at([service.uid])
            if not (is_ours or is_same_judgement(was.status, service.status)):
                self._note_other_status(service)
        for uid in replaced:
            self.forget_service(uid)

    def _note_other_status(self, service: GrpcService) -> None:
        """Take it that a status has been written that this replica did not write: it may speak no longer."""
        if not self.statuses.is_writing(service):
            for station in self.stations.values():
                station.election.note_other_speaker()

    def _take_service(self, service: GrpcService) -> set[str]:
        if self._returned is not None:
            self._returned.add(service.reference)
        return self.world.note_service(service)

    def note_written(self, raw: Mapping[str, Any]) -> None:
        """Take the answer to a status that we have written: what comes now is older, what has come may be newer."""
        uid, version = raw["metadata"]["uid"], str(raw["metadata"].get("resourceVersion"))
        known = self.world.services.get(uid)
        if known and is_older(version, known.resource_version):
            return
        self.note_service("MODIFIED", raw, is_ours=True)
        if version.isdigit() and uid in self.world.services:
            self._echoes[uid] = version

    def _is_overtaken(self, uid: str, version: str) -> bool:
        """Say whether an event is older than an answer that was taken: it would take back a claim that was granted.

        What a list says (it has no kind) always counts, as does the first event that is new enough: an API server that
        was restored may begin to count at an older version again.
        """
        echo = self._echoes.get(uid)
        if echo is None:
            return False
        if is_older(version, echo):
            return True
        del self._echoes[uid]
        return False

    def _find_replaced(self, new: GrpcService) -> list[str]:
        """Find the GrpcService (by UID) in whose place a new one of the same name has come."""
        return [each.uid for each in self.world.named(new.reference)]

    def forget_service(self, uid: str) -> None:
        """Take it that a GrpcService is gone for good."""
        self._services_changed(self.world.forget_service(uid))
        self._echoes.pop(uid, None)
        self._refused_grants.discard(uid)
        self.tally.forget_service(uid)
        for station in self.stations.values():
            station.unlearn(uid)
        self.statuses.look_at([uid])  # so that nothing is kept of it there

    def forget_owner(self, seen: Seen, station: Station) -> None:
        """Take it that the unit behind an owner record is gone for good, which was never seen alive."""
        self.world.mark_gone(_unit_of(seen, station))
        self._enqueue([seen.uid], urgent=True)

    def mark_complete(self, resource: str, unlisted: Iterable[str] = ()) -> None:
        """Take it that everything of a resource has been seen once, but in namespaces that may not be read.

        Those stay unknown, and with them all that is in them, until this is told again without them.
        """
        before, self.unlisted[resource] = self.unlisted.get(resource, frozenset()), frozenset(unlisted)
        if newly := before - self.unlisted[resource]:
            pods = [pod for pod in self.world.pods.values() if pod.namespace in newly]
            self._enqueue([pod.uid for pod in pods])
            for pod in pods:
                self._consider_gate(pod)
            self.statuses.look_at([each.uid for each in self.world.services.values() if each.namespace in newly])
        if resource in self.complete:
            return
        self.complete.add(resource)
        if resource == PODS:
            self._timings.begin()
        log.info("a complete list has been seen", extra={"event": "listed", "fields": {"resource": resource}})
        for station in self.stations.values():
            station.writer.wake()
        if resource == SERVICES:
            self._services_changed(set())
        for pod in list(self.world.pods.values()):
            self._consider_gate(pod)

    def _pod_changed(self, pod: Pod) -> None:
        services = self.world.selecting(pod)
        ready = {each.uid: is_serving_for(pod, each) for each in services}
        changed = self.tally.note_selected(pod.uid, ready)
        self.statuses.look_at(changed)
        urgent = not any(ready.values())
        for station in self.stations.values():
            # Whom nobody selects any more may be on its way to etcd, which no owner record tells yet.
            if services or changed or pod.uid in station.mirror.owners:
                station.enqueue([pod.uid], urgent=urgent)
        self._consider_gate(pod)

    def _services_changed(self, concerned: set[str]) -> None:
        if self.grants_in_memory and self.may_write():
            concerned = concerned | self._grant_in_memory()
        services = concerned & self.world.services.keys()
        self._note_asking(concerned)
        self._follow(services)  # ahead of their plans, which wait for what is not listed yet
        for uid in concerned:
            if pod := self.world.pods.get(uid):
                ready = {each.uid: is_serving_for(pod, each) for each in self.world.selecting(pod)}
                self.statuses.look_at(self.tally.note_selected(uid, ready))
                self._consider_gate(pod)
        self.statuses.look_at(services)
        self._enqueue(concerned)
        if self.world.asking or self.world.releasing:
            self.claims.set()

    def _note_asking(self, concerned: Iterable[str]) -> None:
        """Note since when each asks for what it asks for now: one that is renamed on and on asks anew each time."""
        for uid in concerned:
            if (service := self.world.asking.get(uid)) is None:
                self._asked_at.pop(uid, None)
            elif self._asked_at.get(uid, (None, 0.0))[0] != service.generation:
                self._asked_at[uid] = service.generation, time.monotonic()

    def _follow(self, services: Iterable[str]) -> None:
        """Let each registry follow what these GrpcServices write under; what others claim decides on that, too."""
        for uid, station in product(services, self.stations.values()):
            station.learn(uid, self.world.written_as(uid))

    def _grant_in_memory(self) -> set[str]:
        """Grant all claims that are asked for, the oldest GrpcService's first."""
        units: set[str] = set()
        while uid := self.world.asking.next():
            service = self.world.services[uid]
            claims = self.world.begin_grant(uid, service.created)
            if claims is None:
                units |= self.world.judge_again(uid)
            else:
                units |= self.world.note_service(replace(service, status={**service.status, "claims": claims}))
                units |= self.world.end_grant(uid)
        return units

    # -- claims -----------------------------------------------------------------------------------------------------

    def begin_grant(self, uid: str, since: str) -> list[dict[str, str]] | None:
        """Reserve what a GrpcService asks for; None: somebody else was first."""
        claims = self.world.begin_grant(uid, since)
        if claims is None:
            self._services_changed(self.world.judge_again(uid))
        return claims

    def end_grant(self, uid: str) -> None:
        """Take it that a grant was written or not."""
        self._services_changed(self.world.end_grant(uid))

    def note_grant(self, uid: str, *, is_refused: bool) -> None:
        """Take it that the API server refuses one object's claims for good, or does not do so any more."""
        if is_refused:
            self._refused_grants.add(uid)
        else:
            self._refused_grants.discard(uid)

    def has_keys(self, service: GrpcService, claim: Claim) -> bool:
        """Say whether keys of a GrpcService's namespace stand below a claim, as far as anybody knows."""
        namespace = service.namespace
        return any(self._stands_in(station, namespace, claim) for station in self._stations_of(service, claim))

    def is_in_doubt(self, uid: str) -> bool:
        """Say whether what a GrpcService asks for may be held in a namespace whose GrpcServices may not be read.

        Their claims are unknown to whoever has begun since. But the keys that stand are known, and whose they are.
        """
        unread, service = self.unlisted.get(SERVICES), self.world.asking.get(uid)
        if not unread or service is None or service.spec is None or self.world.shared_names:
            return False
        asked, held = claims_of(service.spec, self.stations.keys()), read_claims(service.status)
        new = [claim for claim in asked if claim not in held]
        return any(
            self._stands_in(station, namespace, claim)
            for namespace, claim in product(unread, new)
            for station in self._stations_of(service, claim)
        )

    def _stations_of(self, service: GrpcService, claim: Claim) -> list[Station]:
        """Give where keys below a claim may stand: a registry that the settings lack may have been renamed."""
        if station := self.stations.get(self._etcds.get(claim.registry, claim.registry)):
            return [station]
        held = read_claims(service.status)
        return [each for each in self.stations.values() if claim._replace(registry=each.name) not in held]

    def _stands_in(self, station: Station, namespace: str, claim: Claim) -> bool:
        keys = self._keys_of(station).get(namespace, ())
        at = bisect_left(keys, claim.prefix)
        stands = at < len(keys) and keys[at].startswith(claim.prefix)
        return stands or not station.is_listed or station.mirror.is_writing_below(claim.prefix)

    def _keys_of(self, station: Station) -> Mapping[str, Sequence[bytes]]:
        """Give the keys that the units of each namespace have, in order and with a slash behind each.

        Thousands may ask at once, so it is made anew only when an owner record has been put or has gone.
        """
        mirror = station.mirror
        known, found = self._keys.get(station.name, (None, {}))
        if mirror.owners_version != known:
            found = {}
            for owner in mirror.owners.values():
                found.setdefault(owner.namespace, []).extend(key + b"/" for key in owner.keys)
            for keys in found.values():
                keys.sort()
            self._keys[station.name] = mirror.owners_version, found
        return found

    def _consider_gate(self, pod: Pod) -> None:
        if pod.gated and not pod.gate_open and not pod.terminating and self._gates.judge(pod, {}):
            self.statuses.look_at_gate(pod.uid)

    def _enqueue(self, uids: Collection[str], *, urgent: bool = False) -> None:
        for station in self.stations.values():
            station.enqueue(uids, urgent=urgent)

    # -- what writers ask and tell ----------------------------------------------------------------------------------

    def desired(self, uid: str, registry: str) -> Desired | None:
        """Say what a unit ought to have in a registry; None means that it is not known."""
        pod = self.world.pods.get(uid)
        if pod and not self.are_services_known(pod.namespace):
            return None
        desired = self.world.desired(uid, registry)
        if desired and pod and self._returned is not None and pod.is_serving():
            station = self.stations[registry]
            owner = station.mirror.owner(uid)
            awaited = frozenset(owner.grpc_services if owner else ()) - self._returned
            # What no owner record names may be of any of them.
            nameless = frozenset(
                key
                for key in station.mirror.unnamed(lease_id(station.cluster, uid))
                if (record := station.mirror.record(key)) and not leads_elsewhere(desired.host, key, record.value)
            )
            keeps = desired.keeps | (nameless - {each.key for each in desired.wanted})
            return replace(desired, keep_references=desired.keep_references | awaited, keeps=keeps)
        return desired

    def await_return(self) -> None:
        """Take it that the CRD was away when this process began: GrpcServices that have keys may come again."""
        if SERVICES not in self.complete and self._returned is None:
            self._returned = {each.reference for each in self.world.services.values()}

    @property
    def is_awaiting_return(self) -> bool:
        """Say whether GrpcServices that were never seen may come again."""
        return self._returned is not None

    def is_return_awaited(self, namespace: str) -> bool:
        """Say whether GrpcServices of a namespace are awaited that have keys: one of them may select any Pod there."""
        if self._returned is None:
            return False
        known = (len(self._returned), *(station.mirror.owners_version for station in self.stations.values()))
        if self._awaited[0] != known:
            owners = [owner for station in self.stations.values() for owner in station.mirror.owners.values()]
            found = {each.namespace for each in owners if not self._returned.issuperset(each.grpc_services)}
            self._awaited = known, found
        return namespace in self._awaited[1]

    def end_return(self) -> None:
        """Take it that whatever GrpcService has not come by now is gone for good."""
        self._returned = None
        for station in self.stations.values():
            station.enqueue(list(station.mirror.owners))
        for pod in list(self.world.pods.values()):
            self._consider_gate(pod)

    def are_services_known(self, namespace: str) -> bool:
        """Say whether the GrpcServices of a namespace have been listed."""
        return namespace not in self.unlisted.get(SERVICES, ())

    def why_unseen(self, resource: str, namespace: str) -> str | None:
        """Say why a resource of a namespace is not seen now; None: it is. Empty where that may pass by itself.

        What is in memory of it may be of yesterday then, or nothing.
        """
        found = self.blindness(resource, namespace)
        return "" if found is None and namespace in self.unlisted.get(resource, ()) else found

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide between two living units that want one key."""
        return self.world.outranks(uid, rival)

    def may_write(self) -> bool:
        """Say whether claims can be judged: all GrpcServices have been seen."""
        return SERVICES in self.complete

    def has_seen_all(self) -> bool:
        """Say whether all Pods and GrpcServices are known."""
        return self.complete >= {PODS, SERVICES}

    def may_ask_for(self, registry: str) -> bool:
        """Say whether GrpcServices may name a registry that the settings have no more, so that what it holds stays."""
        return registry not in self._etcds and (not self.has_seen_all() or self.world.asks_for(registry))

    def has_open_claims(self, moment: float) -> bool:
        """Say whether GrpcServices that asked for claims by a moment (monotonic) wait while claims are being granted.

        One whose status the API server refuses, or that nobody grants, holds up no mark; where that is all of them it
        is no single object's trouble, and nothing is known to be complete.
        """
        now, waiting = time.monotonic(), self.world.asking.keys() - self._refused_grants
        asking = {uid for uid in waiting if self._asked_at.get(uid, (0, moment))[1] <= moment}
        if not self._asking or self._asking - asking:
            self._granted_at = now
        self._asking = asking
        if 0 < len(self.world.asking) == len(self.world.services):
            return True
        return bool(asking) and now - self._granted_at < self._grant_seconds

    def units(self) -> list[str]:
        """Name all Pods and GrpcServices that there are."""
        return [*self.world.pods, *self.world.services]

    def sources(self, uid: str) -> list[str]:
        """Name the GrpcServices (by UID) that a unit's records are of, or would be."""
        pod = self.world.pods.get(uid)
        return [each.uid for each in self.world.selecting(pod)] if pod else [uid] if uid in self.world.services else []

    def take_outcome(self, registry: str, outcome: Outcome) -> None:
        """Take how far a unit is in a registry."""
        uid = outcome.uid
        pod = self.world.pods.get(uid)
        services = self.world.selecting(pod) if pod else []
        if pod or uid in self.world.gone:
            serving = [each.uid for each in services if is_serving_for(pod, each)]
            wanting = {each: names for each in serving if pod and (names := self.world.registries_for(each, pod))}
            self.statuses.look_at(self.tally.note_registered(uid, registry, outcome.written, wanting))
            self.statuses.look_at(self.tally.note_standing(uid, registry, self._find_standing(registry, outcome)))
        known = [each.uid for each in services] + ([uid] if uid in self.world.services else [])
        faults = [each for each in outcome.faults if each.source in self.world.services]  # others went meanwhile
        self.statuses.look_at(self.tally.note_faults(uid, registry, faults, known))
        if pod:
            self._consider_gate(pod)
        if outcome.plan:
            if pod or outcome.plan.gone:
                is_gone = pod is None or pod.terminating
                self._timings.note(registry, uid, outcome.plan, outcome.waited_seconds, gone=is_gone)
            _log_change(registry, self.world, outcome)

    def _find_standing(self, registry: str, outcome: Outcome) -> frozenset[str]:
        """Find the GrpcServices whose keys of a unit stay though what they ask for cannot be obeyed."""
        station = self.stations.get(registry)
        owner = station.mirror.owner(outcome.uid) if station else None
        if owner is None:
            return frozenset()
        faulty = {fault.source for fault in outcome.faults if fault.reason in KEEPING}
        found = (each.uid for reference in owner.grpc_services for each in self.world.named(reference))
        return frozenset(uid for uid in found if uid in faulty or not self.world.verdict(uid).accepted)

    def count_unregistered(self, registry: str) -> int:
        """Count the Pods that are ready and not written there, of GrpcServices that are in force there and enabled.

        What is not accepted is counted by itself: no tenant is to raise this alarm by asking for what is another's. So
        are keys that somebody else holds: a server that registers itself is in the registry, as is a Pod whose key an
        older GrpcService of the same name writes.
        """
        wanting = (uid for uid in self.world.services if self.world.is_enabled(uid, registry))
        written, taken = self.tally.count_written(registry), self.tally.count_taken(registry)
        return sum(max(0, self.tally.counts(uid).ready - written[uid] - taken[uid]) for uid in wanting)

    def count_refusals(self) -> Counter[str]:
        """Count the GrpcServices of which the condition Accepted is false, by reason."""
        world = self.world
        portless = [u for u in world.services if world.verdict(u).accepted and is_portless(self.tally.counts(u))]
        seen = [uid for uid in portless if not self.why_unseen(PODS, world.services[uid].namespace)]
        return world.count_refusals() + Counter({PORTLESS: len(seen)})

    def conflicts(self, registry: str) -> int:
        """Count keys and names that somebody else holds."""
        return self.world.taken + self.tally.count_faults(registry, KEY_TAKEN)

    def services_behind(self, uids: Iterable[str]) -> list[GrpcService]:
        """Find the GrpcServices that units have records of, in any registry."""
        owners = [station.mirror.owner(uid) for uid in uids for station in self.stations.values()]
        references = {reference for owner in owners if owner for reference in owner.grpc_services}
        return [service for reference in sorted(references) for service in self.world.named(reference)]


def is_older(version: str, other: str) -> bool:
    """Say whether one resourceVersion of an object is older than another; what is no number cannot be compared."""
    return version.isdigit() and other.isdigit() and int(version) < int(other)


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
    log.info(
        "written" if plan.puts else "withdrawn",
        extra={"event": "records_written" if plan.puts else "records_deleted", "fields": fields},
    )
