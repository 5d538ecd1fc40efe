"""How many Pods each GrpcService has: selected, ready, registered; and what is wrong with some of them.

Kept up to date change by change, so that a status costs the same for 3 Pods and for 10,000.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.reasons import Reason

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
# Of values that are kept once. Beyond that they are of what is long gone, for the most part, and sharing begins again.
MOST_SHARED = 4096
EXCUSES = (Reason.KEY_TAKEN, Reason.KEY_SHARED, Reason.RATE_LIMITED)  # of a Pod that is not written


@dataclass(slots=True)
class Counts:
    """One GrpcService's numbers; `faults` by owner and registry.

    `standing` are the Pods whose keys stay though what the GrpcService asks for cannot be obeyed.
    """

    selected: int = 0
    ready: int = 0
    registered: int = 0
    faults: dict[tuple[str, str], tuple[Fault, ...]] = field(default_factory=dict)
    standing: int = 0


class EndpointCounts:
    """The counts of all GrpcServices. Each call returns the GrpcServices (by UID) whose numbers or faults changed."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._selected: dict[str, Mapping[str, bool]] = {}
        self._registered: dict[tuple[str, str], frozenset[str]] = {}
        self._whole: dict[str, frozenset[str]] = {}
        # Thousands of Pods say the same: they share one object. Both are begun again when a GrpcService goes.
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        self._maps: dict[frozenset[tuple[str, bool]], Mapping[str, bool]] = {}
        self._faulty: dict[tuple[str, str], frozenset[str]] = {}
        self._standing: dict[tuple[str, str], frozenset[str]] = {}
        self._standing_in: Counter[tuple[str, str]] = Counter()
        self._kinds: Counter[tuple[str, str]] = Counter()

    def counts(self, service: str) -> Counts:
        """Return a GrpcService's counts. To ask for those of one that is gone leaves nothing behind."""
        return self._counts.get(service) or Counts()

    def _counted(self, service: str) -> Counts:
        return self._counts.setdefault(service, Counts())

    def note_selected(self, pod: str, ready: Mapping[str, bool]) -> set[str]:
        """Take which GrpcServices select a Pod, and for which of them it counts as ready."""
        old = self._selected.get(pod, {})
        if old == ready:
            return set()
        # Of hundreds that select a Pod an event concerns one or two.
        changed = {service for service, _ in old.items() ^ ready.items()}
        for service in changed:
            counts = self._counted(service)
            counts.selected += (service in ready) - (service in old)
            counts.ready += ready.get(service, False) - old.get(service, False)
        if ready:
            self._selected[pod] = _share(self._maps, frozenset(ready.items()), ready)
        else:
            self._selected.pop(pod, None)
        return changed

    def note_registered(
        self, pod: str, registry: str, written: frozenset[str], wanting: Mapping[str, Iterable[str]]
    ) -> set[str]:
        """Take which GrpcServices have all their keys of a Pod in a registry; `wanting` says where each goes."""
        if written:
            self._registered[pod, registry] = _share(self._sets, written, written)
        else:
            self._registered.pop((pod, registry), None)
        whole = frozenset(
            service
            for service, registries in wanting.items()
            if all(service in self._registered.get((pod, each), ()) for each in registries)
        )
        old = self._whole.get(pod, frozenset())
        for service in old - whole:
            if counts := self._counts.get(service):  # else it is gone, and nothing is kept of it
                counts.registered -= 1
        for service in whole - old:
            self._counted(service).registered += 1
        if whole:
            self._whole[pod] = _share(self._sets, whole, whole)
        else:
            self._whole.pop(pod, None)
        return set(old ^ whole)

    def count_written(self, registry: str) -> Counter[str]:
        """Count for each GrpcService the ready Pods that have all their keys in one registry, whatever the others lack.

        Recreated from everything: whoever asks does so rarely.
        """
        found = (
            (service, self._selected.get(pod, {}))
            for (pod, name), written in self._registered.items()
            if name == registry
            for service in written
        )
        return Counter(service for service, ready in found if ready.get(service))

    def count_excused(self, registry: str) -> Counter[str]:
        """Count for each GrpcService the ready Pods that are not written in one registry for no fault of it.

        Another has a key of theirs, or their own namespace has written too much.
        """
        found = (
            (service, self._selected.get(pod, {}), self.counts(service).faults.get((pod, name), ()))
            for (pod, name), services in self._faulty.items()
            if name == registry
            for service in services
            if service not in self._registered.get((pod, name), ())
        )
        return Counter(
            service
            for service, ready, faults in found
            if ready.get(service) and any(fault.reason in EXCUSES for fault in faults)
        )

    def is_registered(self, pod: str, service: str) -> bool:
        """Return whether a Pod has all its keys of a GrpcService, in every registry that it goes to."""
        return service in self._whole.get(pod, ())

    def note_faults(self, unit: str, registry: str, faults: Iterable[Fault], services: Iterable[str]) -> set[str]:
        """Take all that is wrong with a unit in a registry; `services` are those that select it.

        Those that had faults of it before are looked at too: a Pod that is gone is selected by nobody.
        """
        found: dict[str, tuple[Fault, ...]] = {}
        for fault in faults:
            found[fault.source] = (*found.get(fault.source, ()), fault)
        before = self._faulty.pop((unit, registry), frozenset())
        if found:
            self._faulty[unit, registry] = frozenset(found)
        changed = set()
        for service in {*services, *found, *(before & self._counts.keys())}:
            known = self._counted(service).faults
            now = found.get(service, ())
            if known.get((unit, registry), ()) != now:
                changed.add(service)
                self._kinds.subtract((registry, fault.reason) for fault in known.get((unit, registry), ()))
                self._kinds.update((registry, fault.reason) for fault in now)
                if now:
                    known[unit, registry] = now
                else:
                    del known[unit, registry]
        return changed

    def count_faults(self, registry: str, reason: Reason) -> int:
        """Count the faults of one kind in a registry."""
        return self._kinds[registry, reason]

    def note_standing(self, pod: str, registry: str, services: frozenset[str]) -> set[str]:
        """Take which GrpcServices have keys of a Pod in a registry that only stay."""
        old = self._standing.get((pod, registry), frozenset())
        if old == services:
            return set()
        for service in services:
            self._counted(service)
        for service in old - services:
            self._add_standing(service, pod, -1)
        for service in services - old:
            self._add_standing(service, pod, 1)
        if services:
            self._standing[pod, registry] = services
        else:
            self._standing.pop((pod, registry), None)
        return set(old ^ services)

    def _add_standing(self, service: str, pod: str, step: int) -> None:
        """Count a Pod once, in however many registries its keys stay."""
        before = self._standing_in[service, pod]
        self._standing_in[service, pod] = before + step
        if not before + step:
            del self._standing_in[service, pod]
        if counts := self._counts.get(service):
            counts.standing += bool(before + step) - bool(before)

    def faults_of(self, unit: str, service: str, registries: Iterable[str]) -> list[Fault]:
        """Return what is wrong with one unit for a GrpcService."""
        known = self.counts(service).faults
        return [fault for registry in registries for fault in known.get((unit, registry), ())]

    def forget_service(self, service: str) -> None:
        """Drop a GrpcService that is gone."""
        counts = self._counts.pop(service, Counts())
        self._sets.clear()  # what is shared goes on being shared; what named the gone would stay forever
        self._maps.clear()
        for (_, registry), faults in counts.faults.items():
            self._kinds.subtract((registry, fault.reason) for fault in faults)


def _share(known: dict[K, V], key: K, value: V) -> V:
    """Return the value that was first met under a key, so that equal ones are one object."""
    if len(known) >= MOST_SHARED:
        known.clear()
    return known.setdefault(key, value)
