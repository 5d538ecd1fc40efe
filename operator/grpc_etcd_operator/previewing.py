"""What `plan` still has to read, how long it waits for that, and what it says when nothing comes.

`run` waits without an end, because waiting can help it. Whoever calls `plan` wants to hear what is wrong.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from grpc_etcd.etcd.errors import Unavailable
from grpc_etcd_operator.kube.freshness import Freshness
from grpc_etcd_operator.reconciling import PODS, SERVICES, Reconciler
from grpc_etcd_operator.remedies import remedy
from grpc_etcd_operator.settings import RegistrySettings

log = logging.getLogger(__name__)
# Several tries at etcd, each of which takes 5 s at most, and two at the API server. Arbitrary; operations.md names it.
PLAN_SECONDS = 60.0
CRD_MISSING = "the CRD grpcservices.grpc-etcd.dev is not installed: kubectl apply -f crds/grpcservices.yaml"
RIGHTS = "give the operator's account the rights that the chart's role has there"


class Standstill:
    """Tells when something that is missing has come no further for too long."""

    def __init__(self, seconds: float = PLAN_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._since: dict[str, tuple[Hashable, float]] = {}

    def lasts(self, missing: Mapping[str, Hashable]) -> bool:
        """Take what is missing now, each with how far it has come; say whether one has stood still for too long."""
        now, before = self._clock(), self._since
        self._since = {
            part: before[part] if part in before and before[part][0] == state else (state, now)
            for part, state in missing.items()
        }
        return any(now - since > self._seconds for _, since in self._since.values())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a plan is made of, as far as it has been read. `is_crd_missing` and `server` are about the API server."""

    reconciler: Reconciler
    freshness: Freshness
    registries: Sequence[RegistrySettings]
    server: str
    is_crd_missing: Callable[[], bool]

    def find_missing(self) -> dict[str, Hashable]:
        """Give what is still to be read or judged, each with how far that is."""
        world, complete = self.reconciler.world, self.reconciler.complete
        known = {PODS: len(world.pods), SERVICES: len(world.services)}
        missing: dict[str, Hashable] = {what: count for what, count in known.items() if what not in complete}
        for name, station in self.reconciler.stations.items():
            if not station.is_listed:
                missing[f"registry {name}"] = "unread"
            elif not station.writer.has_judged_all:
                missing[f"registry {name}"] = station.writer.depth
        return missing or {"the owner records": "unchecked"}

    def explain(self) -> str:
        """Say why there is no plan, and what to do about it."""
        unseen = [self._explain_unseen(each) for each in (PODS, SERVICES) if each not in self.reconciler.complete]
        return "; ".join([*unseen, *self._explain_registries()]) or "not everything has been compared yet: try again"

    def _explain_registries(self) -> Iterator[str]:
        for registry in self.registries:
            station = self.reconciler.stations[registry.name]
            silence = Unavailable("nothing has been heard of it")
            if complaint := station.complaint:
                yield f"registry {registry.name} at {','.join(registry.endpoints)}: {complaint}"
            elif not station.is_listed:
                said = f"{silence}. {remedy(silence, registry)}"
                yield f"registry {registry.name} at {','.join(registry.endpoints)}: {said}"

    def _explain_unseen(self, resource: str) -> str:
        what = f"not all {resource} have been seen"
        if resource == SERVICES and self.is_crd_missing():
            return f"{what}: {CRD_MISSING}"
        refused = "; ".join(f"{where or 'all namespaces'}: {said}" for where, said in self._unreadable(resource))
        return f"{what}: {refused}; {RIGHTS}" if refused else f"{what}: check the API server at {self.server}"

    def _unreadable(self, resource: str) -> list[tuple[str, str]]:
        return sorted(self.freshness.unreadable(resource).items())

    def warn(self) -> None:
        """Warn of what a plan leaves out; of that nothing would be written or withdrawn."""
        for resource in (PODS, SERVICES):
            for namespace, said in self._unreadable(resource):
                fields = {"namespace": namespace, "of": resource, "error": said, "remedy": RIGHTS}
                message = "a namespace is left out of the plan: not everything of it may be read"
                log.warning(message, extra={"event": "plan_incomplete", "fields": fields})
