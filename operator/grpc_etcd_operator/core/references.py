"""GrpcServices that take selector and port from a Service (`spec.serviceRef`): which, and what follows. Pure.

    the Service                                  | the GrpcService
    ---------------------------------------------+----------------------------------------------------------------
    selects Pods, and its gRPC port is known     | is as if its spec had that selector, and that port if it names none
    is missing, cannot be used, or may not be    | has no spec that could be obeyed: what it has stays (wishes.py)
    read; or Services were not listed yet        |
    any of these, and `spec.enable` is false     | is obeyed: it selects nobody
    any of these, and its spec is at fault       | has no spec either; it is known, or not, whom it would select

So a Service deregisters no key by going; it is the GrpcService that is the wish.

What is kept grows with what GrpcServices name. Of a large Service that none of them names it is known only that it is
there; when one names it, it is waited for the next list.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.selector import ANYBODY, NOBODY
from grpc_etcd_operator.core.services import GrpcService, Spec
from grpc_etcd_operator.core.targets import Target

Place = tuple[str, str]  # the namespace and the name of a Service
REMEDY = (
    "existing keys stay; {}, or give spec.selector instead of spec.serviceRef; to delete the keys set enable: false"
)
UNREADABLE = (
    "the Services of namespace {} are not known: {}; allow the operator's ServiceAccount to list and watch "
    "services there (the chart's Role or ClusterRole does); until then existing keys stay and no Service is followed"
)
UNANSWERED = (
    "the Services of namespace {} are not known: for more than {:.0f} seconds no complete list of them has come from "
    "the API server; check it and what is between it and the operator; until then existing keys stay"
)
LARGE = "waiting for the next list of Services, since the selector of the Service {} is very large; no action needed"


class Lack(NamedTuple):
    """Why nothing can be taken of a Service."""

    reason: Reason
    message: str


def resolve(service: GrpcService, found: Target | Lack) -> GrpcService:
    """Return a GrpcService with what it takes of the Service that it names, or with why that is nothing."""
    if not service.service_ref:
        return service
    spec = service.claimed
    if spec is None:
        return service.drafted_for(found.selector if isinstance(found, Target) else ANYBODY)
    taken = found if isinstance(found, Lack) else _find_lack(spec, found) or found
    if isinstance(taken, Target):
        return service.with_target(taken.selector, taken.port)
    return service.without_target(*taken) if spec.enable else service.with_target(NOBODY, None)


def _find_lack(spec: Spec, target: Target) -> Lack | None:
    if target.fault:
        remedy = REMEDY.format("name another Service")
        return Lack(Reason.SERVICE_UNUSABLE, f"the Service {target.name} cannot be used: {target.fault}; {remedy}")
    if target.port_fault and spec.port is None:
        remedy = "set spec.port, or name a port of the Service grpc; existing keys stay"
        return Lack(Reason.PORT_NOT_FOUND, f"the Service {target.name}: {target.port_fault}; {remedy}")
    return None


class References:
    """The Services seen, and the GrpcServices (by UID) that name them.

    `pending` are those of which nothing can be known before Services are listed.
    """

    def __init__(self) -> None:
        self.pending: dict[str, None] = {}
        self._targets: dict[Place, Target] = {}
        self._naming: dict[Place, dict[str, None]] = {}
        self._named: dict[str, Place] = {}
        self._brief: set[Place] = set()  # what is named, and known too briefly for that
        self._listed: set[str] = set()
        self._unreadable: dict[str, str] = {}
        self._unanswered: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<References services={len(self._targets)} named={len(self._naming)}>"

    def resolve(self, service: GrpcService) -> GrpcService:
        """Take a GrpcService as it now is; return what it asks for."""
        place = service.namespace, service.service_ref
        self.pending.pop(service.uid, None)
        if self._named.get(service.uid) != place:  # else nothing is dropped of what it names
            self.forget_service(service.uid)
        if not service.service_ref:
            return service
        self._named[service.uid] = place
        self._naming.setdefault(place, {})[service.uid] = None
        resolved = resolve(service, self._find(*place))
        if resolved.spec is None and resolved.reason is Reason.PENDING and place not in self._brief:
            self.pending[service.uid] = None
        return resolved

    def forget_service(self, uid: str) -> None:
        """Record that a GrpcService is gone, or names no Service any more."""
        self.pending.pop(uid, None)
        if place := self._named.pop(uid, None):
            naming = self._naming[place]
            del naming[uid]
            if not naming:
                del self._naming[place]
                self._brief.discard(place)
                if target := self._targets.get(place):
                    self._targets[place] = target.spare()

    def note(self, target: Target) -> Collection[str]:
        """Take a Service as it now is; return whom that concerns."""
        place = target.namespace, target.name
        known = self._targets.get(place)
        self._targets[place] = target if place in self._naming else target.spare()
        self._brief.discard(place)
        return () if known == target else tuple(self._naming.get(place, ()))

    def forget(self, target: Target) -> Collection[str]:
        """Record that a Service is gone, perhaps for one that has its name by now; return whom that concerns."""
        place = target.namespace, target.name
        known = self._targets.get(place)
        if known is None or known.uid != target.uid:
            return ()
        del self._targets[place]
        self._brief.discard(place)
        return tuple(self._naming.get(place, ()))

    def take_list(self, namespace: str, listed: Collection[str]) -> Collection[str]:
        """Take the UIDs of a complete list in a namespace (empty: in all), each of which is noted."""
        self._listed.add(namespace)
        missing = [each for each in self._targets.values() if namespace in ("", each.namespace)]
        gone = [uid for each in missing if each.uid not in listed for uid in self.forget(each)]
        was_late = self._unanswered.pop(namespace, None) is not None
        waiting = (uid for uid in self._in(namespace) if was_late or uid in self.pending)
        return tuple(dict.fromkeys((*gone, *waiting)))

    def note_unanswered(self, namespace: str, seconds: float) -> Collection[str]:
        """Record that the first list of a namespace (empty: of all) has not come for so long; once is enough."""
        if namespace in self._unanswered or self._listed & {"", namespace}:
            return ()
        self._unanswered[namespace] = seconds
        return tuple(self._in(namespace))

    def wants_list(self, namespace: str) -> bool:
        """Return whether a Service of a namespace (empty: of any) is named of which only a list shows enough."""
        return any(namespace in ("", of) for of, _ in self._brief)

    def note_fault(self, namespace: str, fault: str) -> Collection[str]:
        """Take why the Services of a namespace (empty: of all) may not be read; empty: they may."""
        if self._unreadable.get(namespace, "") == fault:
            return ()
        self._unreadable[namespace] = fault
        return tuple(self._in(namespace))

    def are_in(self, namespace: str) -> bool:
        """Return whether a GrpcService of a namespace (empty: of any) names a Service."""
        return any(self._in(namespace))

    def _in(self, namespace: str) -> Iterable[str]:
        return (uid for uid, (of, _) in self._named.items() if namespace in ("", of))

    def _find(self, namespace: str, name: str) -> Target | Lack:
        if fault := self._unreadable.get("") or self._unreadable.get(namespace):
            return Lack(Reason.SERVICES_UNREADABLE, UNREADABLE.format(namespace, fault))
        if target := self._targets.get((namespace, name)):
            if not target.is_brief:
                return target
            self._brief.add((namespace, name))
            return Lack(Reason.PENDING, LARGE.format(name))
        if not self._listed & {"", namespace}:
            if seconds := self._unanswered.get("") or self._unanswered.get(namespace):
                return Lack(Reason.SERVICES_UNREADABLE, UNANSWERED.format(namespace, seconds))
            return Lack(Reason.PENDING, "waiting for the list of Services; no action needed")
        remedy = REMEDY.format("create it")
        return Lack(Reason.SERVICE_NOT_FOUND, f"there is no Service {name} in namespace {namespace}; {remedy}")
