"""How many Pods each GrpcService has: selected, ready, registered; and what is wrong with some of them.

Kept up to date change by change, so that a status costs the same for 3 Pods and for 10,000.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from grpc_etcd_operator.core.desired import Fault


@dataclass(slots=True)
class Counts:
    """One GrpcService's numbers; `faults` by unit and registry."""

    selected: int = 0
    ready: int = 0
    registered: int = 0
    faults: dict[tuple[str, str], tuple[Fault, ...]] = field(default_factory=dict)


class Tally:
    """The counts of all GrpcServices. Each call returns the GrpcServices (by UID) whose numbers or faults changed."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._selected: dict[str, Mapping[str, bool]] = {}
        self._registered: dict[tuple[str, str], frozenset[str]] = {}
        self._whole: dict[str, frozenset[str]] = {}
        # Thousands of Pods say the same: they share one object.
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        self._maps: dict[frozenset[tuple[str, bool]], Mapping[str, bool]] = {}
        self._faulty: dict[tuple[str, str], frozenset[str]] = {}

    def counts(self, service: str) -> Counts:
        """Give a GrpcService's counts."""
        return self._counts.setdefault(service, Counts())

    def note_selected(self, pod: str, ready: Mapping[str, bool]) -> set[str]:
        """Take which GrpcServices select a Pod, and for which of them it counts as ready."""
        old = self._selected.get(pod, {})
        if old == ready:
            return set()
        for service, was_ready in old.items():
            counts = self.counts(service)
            counts.selected -= 1
            counts.ready -= was_ready
        for service, is_ready in ready.items():
            counts = self.counts(service)
            counts.selected += 1
            counts.ready += is_ready
        if ready:
            self._selected[pod] = self._maps.setdefault(frozenset(ready.items()), ready)
        else:
            self._selected.pop(pod, None)
        return {*old, *ready}

    def note_registered(
        self, pod: str, registry: str, written: frozenset[str], wanting: Mapping[str, Iterable[str]]
    ) -> set[str]:
        """Take which GrpcServices have all their keys of a Pod in a registry; `wanting` says where each goes."""
        if written:
            self._registered[pod, registry] = self._sets.setdefault(written, written)
        else:
            self._registered.pop((pod, registry), None)
        whole = frozenset(
            service
            for service, registries in wanting.items()
            if all(service in self._registered.get((pod, each), ()) for each in registries)
        )
        old = self._whole.get(pod, frozenset())
        for service in old - whole:
            self.counts(service).registered -= 1
        for service in whole - old:
            self.counts(service).registered += 1
        if whole:
            self._whole[pod] = self._sets.setdefault(whole, whole)
        else:
            self._whole.pop(pod, None)
        return set(old ^ whole)

    def is_registered(self, pod: str, service: str) -> bool:
        """Say whether a Pod has all its keys of a GrpcService, in every registry that it goes to."""
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
        for service in {*services, *found, *before}:
            known = self.counts(service).faults
            now = found.get(service, ())
            if known.get((unit, registry), ()) != now:
                changed.add(service)
                if now:
                    known[unit, registry] = now
                else:
                    del known[unit, registry]
        return changed

    def count_faults(self, registry: str, reason: str) -> int:
        """Count the faults of one kind in a registry."""
        found = (
            faults
            for counts in self._counts.values()
            for (_, where), faults in counts.faults.items()
            if where == registry
        )
        return sum(fault.reason == reason for faults in found for fault in faults)

    def forget_service(self, service: str) -> None:
        """Drop a GrpcService that is gone."""
        self._counts.pop(service, None)
