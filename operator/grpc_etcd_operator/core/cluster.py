"""Everything seen of Kubernetes, in memory, and who is affected when a part of it changes. Facts in, UIDs out; no I/O.

Level-triggered: a note changes the facts and returns the units (Pods and GrpcServices by UID) whose desired state may
have changed. What a unit ought to have is worked out only when a writer asks. A UID that is gone never comes back. An
unknown UID is not the same as one that is gone: only what is known to be gone may lose its records.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from grpc_etcd_operator.core.asking import Asking
from grpc_etcd_operator.core.claims import Blocked, Claim, Ledger, Rules, claims_of, read_claims, write_claims
from grpc_etcd_operator.core.desired import Desired, Owner, make_pod_desired, make_service_desired
from grpc_etcd_operator.core.kept_keys import KeptKeys
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.references import References
from grpc_etcd_operator.core.selector_index import Form, SelectorIndex
from grpc_etcd_operator.core.services import GrpcService, Spec
from grpc_etcd_operator.core.wishes import Wish, judge_wish


class Verdict(NamedTuple):
    """Whether a GrpcService is accepted; if not, why, and in which registry another's claim is in its way, if any."""

    accepted: bool
    reason: Reason = Reason.ACCEPTED
    message: str = "the spec is valid and its claims are granted"
    registry: str = ""


ACCEPTED = Verdict(accepted=True)
ASKING = Verdict(
    accepted=False, reason=Reason.PENDING, message="waiting for the claim to be written to its status; no action needed"
)


@dataclass(slots=True)
class _Unjudged:
    """What is left of a change: the GrpcServices to be judged for it, and the units that it concerns so far."""

    services: dict[str, None]
    units: set[str]


class ClusterCache:
    """The Pods and GrpcServices seen so far. Not thread-safe: it lives in one event loop.

    What a GrpcService wishes, and what is in force of it, may differ: see `core/wishes.py`.
    """

    def __init__(
        self,
        registries: Iterable[str] | Mapping[str, str],
        *,
        shared_names: bool = False,
        rules: Rules | None = None,
    ) -> None:
        """Take the registries that the settings have; a mapping says which etcd is behind each name."""
        etcds = registries if isinstance(registries, Mapping) else {name: name for name in registries}
        self._registries = frozenset(etcds)
        self._rules, self.shared_names = rules or Rules(), shared_names
        self._ledger = Ledger(etcds, self._rules.reserved, shared_names=shared_names)
        self.pods: dict[str, Pod] = {}
        self.services: dict[str, GrpcService] = {}
        self.gone: dict[str, Owner] = {}
        self.references, self.asking = References(), Asking()
        self.releasing: dict[str, None] = {}
        self.latest_claim = ""  # the latest time of any claim that was ever seen to be held
        self._reserved: dict[str, dict[Claim, str]] = {}
        self._inherited: dict[str, dict[Claim, str]] = {}
        self._pods_of: dict[str, dict[str, Pod]] = {}
        self._by_reference: dict[str, dict[str, None]] = {}
        self._selectors, self._kept = SelectorIndex(), KeptKeys()
        self._unjudged: dict[str, _Unjudged] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._wishes: dict[str, Wish] = {}
        self._standing: dict[str, GrpcService] = {}

    def __repr__(self) -> str:
        return f"<ClusterCache pods={len(self.pods)} services={len(self.services)} gone={len(self.gone)}>"

    def note_pod(self, pod: Pod) -> bool:
        """Take a Pod as it now is; return whether that changed anything that matters."""
        if pod.uid in self.gone:
            return False
        known = self.pods.get(pod.uid)
        self.pods[pod.uid] = pod
        self._pods_of.setdefault(pod.namespace, {})[pod.uid] = pod
        return known != pod

    def forget_pod(self, uid: str) -> bool:
        """Record that a Pod is gone for good; return whether it was known."""
        pod = self.pods.pop(uid, None)
        if pod is None:
            return False
        del self._pods_of[pod.namespace][uid]
        if not self._pods_of[pod.namespace]:
            del self._pods_of[pod.namespace]
        self.gone[uid] = Owner(uid, pod.namespace, pod.name, pod.node)
        return True

    def note_service(self, service: GrpcService) -> set[str]:
        """Take a GrpcService as it now is, or again when its Service has changed; return all units that may concern."""
        if service.uid in self.gone:
            return set()
        service = self.references.resolve(service)
        old = self.services.get(service.uid)
        self.services[service.uid] = service
        self._by_reference.setdefault(service.reference, {})[service.uid] = None
        same = old is not None and old.asks_the_same_as(service) and service.uid not in self._unjudged
        if old and same and old.status.get("claims") == service.status.get("claims"):
            if self._standing.get(service.uid) is old:
                self._standing[service.uid] = service
            self._index(service.uid)
            return set()
        return self._changed(service.uid, old, service)

    def forget_service(self, uid: str) -> set[str]:
        """Record that a GrpcService is gone for good; return all units that this concerns."""
        old = self.services.get(uid)
        if old is None:  # an earlier try may have come as far as others that it concerns
            return self._changed(uid, None, None) if uid in self._unjudged else set()
        self.gone[uid] = Owner(uid, old.namespace)
        self.references.forget_service(uid)
        self._reserved.pop(uid, None)
        self._by_reference.get(old.reference, {}).pop(uid, None)  # an earlier try may have come as far as this
        if not self._by_reference.get(old.reference):
            self._by_reference.pop(old.reference, None)
        return self._bequeath(old) | self._changed(uid, old, None)

    def _bequeath(self, old: GrpcService) -> set[str]:
        """Let the GrpcService that has come in the place of another go on with its claims; return whom this concerns.

        When a CRD is put back every object is a new one, and whoever wanted a name may be put back before its holder.
        """
        units: set[str] = set()
        for heir in self.named(old.reference):
            self._inherited[heir.uid] = dict(self._ledger.held(old.uid))
            units |= self._changed(heir.uid, heir, heir)
        return units

    def _take_over(self, service: GrpcService) -> dict[Claim, str]:
        """Return what a GrpcService has inherited, for as long as it asks for it and its status does not hold it."""
        if found := self._inherited.pop(service.uid, None):
            spec, held = service.claimed, read_claims(service.status)
            asked = claims_of(spec, self._registries) if spec else ()
            if left := {claim: since for claim, since in found.items() if claim in asked and claim not in held}:
                self._inherited[service.uid] = left
                return left
        return {}

    def written_as(self, uid: str) -> list[GrpcService]:
        """Return each form of a GrpcService of which keys are written or stand, or may soon be.

        A wish that is refused is none, unless all that it claims is its own: keys from before a restart may exist.
        """
        service, standing = self.services[uid], self._standing.get(uid)
        is_wished = self._wishes[uid].is_obeyed or self.verdict(uid) is ASKING or self._still_holds(service, service)
        found = (service if is_wished else None, standing if standing is not service else None)
        return [each for each in found if each]

    def named(self, reference: str) -> list[GrpcService]:
        """Return the GrpcServices that go by a `namespace/name`: one, or two while one takes the other's place."""
        return [self.services[uid] for uid in self._by_reference.get(reference, ())]

    # -- claims -----------------------------------------------------------------------------------------------------

    def begin_grant(self, uid: str, since: str) -> list[dict[str, str]] | None:
        """Reserve what a GrpcService asks for; return what its status is to hold. None: somebody else was first."""
        service = self.asking.get(uid)
        if service is None or service.spec is None:
            return None
        held, claims = read_claims(service.status), claims_of(service.spec, self._registries)
        if self._ledger.find_blocked(uid, service.namespace, claims):
            return None
        inherited = self._take_over(service)
        wanted = {claim: inherited.get(claim, since) for claim in claims if claim not in held}
        self._reserved[uid] = wanted
        self._hold(service)
        return write_claims({**wanted, **held})

    def end_grant(self, uid: str) -> set[str]:
        """Record that the status was written or not: from now on it counts alone. Return whom this concerns."""
        service = self.services.get(uid)
        if self._reserved.pop(uid, None) is None or service is None:
            return set()
        return self._changed(uid, service, service)

    def find_spare(self, uid: str, has_keys: Callable[[GrpcService, Claim], bool]) -> list[dict[str, str]] | None:
        """Return a GrpcService's claims without those of which nothing is left; None where that is none of them."""
        service = self.services.get(uid)
        if service is None or service.spec is None or uid not in self.releasing:
            return None
        held = read_claims(service.status)
        spare = [claim for claim in self._spare(service) if not has_keys(service, claim)]
        return write_claims({claim: since for claim, since in held.items() if claim not in spare}) if spare else None

    def _spare(self, service: GrpcService) -> list[Claim]:
        """List the claims that a GrpcService holds and no longer makes, or has lost to an earlier one."""
        held, verdict = read_claims(service.status), self.verdict(service.uid)
        if service.spec is None:
            return []
        if verdict.accepted or verdict is ASKING:
            # What is in force is claimed until the new wish is granted; there may be no room for more beside all else.
            standing = None if verdict.accepted else self._standing.get(service.uid)
            specs = (service.spec, standing.spec if standing else None)
            asked = {claim for spec in specs if spec for claim in claims_of(spec, self._registries)}
            return [claim for claim in held if claim not in asked]
        return [claim for claim in held if self._ledger.find_blocked(service.uid, service.namespace, [claim])]

    def mark_gone(self, unit: Owner) -> None:
        """Record that a unit that was never seen alive is gone: its owner record is all that is left."""
        if unit.uid not in self.pods and unit.uid not in self.services:
            self.gone[unit.uid] = unit

    def count_refusals(self) -> Counter[str]:
        """Count the GrpcServices that are not accepted, by reason."""
        return Counter(verdict.reason for verdict in self._verdicts.values() if not verdict.accepted)

    def verdict(self, uid: str) -> Verdict:
        """Return whether a GrpcService is accepted."""
        return self._verdicts.get(uid, ACCEPTED)

    def count_taken(self, registry: str) -> int:
        """Count the GrpcServices that another one's claim in a registry is in the way of."""
        return sum(verdict.registry == registry for verdict in self._verdicts.values())

    def asks_for(self, registry: str) -> bool:
        """Return whether a GrpcService names a registry, be it one of the settings or not."""
        return any(each.spec and registry in each.spec.registries for each in self.services.values())

    def selecting(self, pod: Pod) -> list[GrpcService]:
        """Return the GrpcServices of which something is in force that selects a Pod, each with what that is."""
        return [each for each in self._selectors.in_force(pod) if self._shown(each.uid) is each]

    def refused_for(self, pod: Pod) -> list[GrpcService]:
        """Return the GrpcServices that would select a Pod, and of which nothing is in force."""
        return list(self._selectors.refused(pod))

    def in_force_for(self, pod: Pod, registry: str) -> list[GrpcService]:
        """Return the GrpcServices that decide which keys a Pod ought to have in a registry."""
        return [each for each in self._selectors.in_force(pod) if self._in_force(each.uid, registry) is each]

    def registries_of(self, uid: str) -> tuple[str, ...]:
        """List the registries in which a GrpcService is written; none where nothing of it is in force."""
        service = self.services.get(uid)
        if service is None or (uid not in self._standing and not self._wishes[uid].is_obeyed):
            return ()
        if self._wishes[uid].is_whole and service.spec:
            return service.spec.registries
        found = [
            name for name in sorted(self._registries) if (force := self._in_force(uid, name)) and _goes_to(force, name)
        ]
        return tuple(found)

    def is_enabled(self, uid: str, registry: str) -> bool:
        """Return whether what is in force of a GrpcService asks for keys in a registry, whatever is wished instead."""
        force = self._in_force(uid, registry)
        return force is not None and force.spec is not None and force.spec.enable and _goes_to(force, registry)

    def registries_for(self, uid: str, pod: Pod) -> tuple[str, ...]:
        """List the registries in which a Pod is written for a GrpcService: what is in force there selects it.

        A mistake may change the selector too, and in one registry the new spec may be in force, in another the old.
        """
        found = ((name, self._in_force(uid, name)) for name in self.registries_of(uid))
        return tuple(name for name, force in found if force and force.spec and force.spec.selector.matches(pod.labels))

    def keeps(self, uid: str) -> bool:
        """Return whether keys that a GrpcService has stay though its spec cannot be obeyed."""
        return uid in self._standing or bool(self._kept_in(uid))

    def _shown(self, uid: str) -> GrpcService | None:
        """Return what people see: what is in force, else what is wished."""
        return (
            self.services.get(uid) if self._wishes[uid].is_obeyed else self._standing.get(uid, self.services.get(uid))
        )

    def _in_force(self, uid: str, registry: str) -> GrpcService | None:
        """Return what decides about keys in a registry.

        The wish where it can be obeyed, else the last that could be.
        """
        service, wish = self.services.get(uid), self._wishes[uid]
        if wish.is_obeyed and service and (wish.is_whole or _goes_to(service, registry)):
            return service
        return self._standing.get(uid)

    def pods_in(self, namespace: str) -> Iterable[Pod]:
        """Return the Pods of a namespace."""
        return self._pods_of.get(namespace, {}).values()

    def selected_by(self, service: GrpcService) -> Iterator[Pod]:
        """Return the Pods that a GrpcService selects, or would if it could be obeyed."""
        spec = service.asked
        if spec is None:
            return iter(())
        return (pod for pod in self.pods_in(service.namespace) if spec.selector.matches(pod.labels))

    def desired(self, uid: str, registry: str) -> Desired | None:
        """Return what a unit ought to have in a registry; None means that nothing is known of it, so hands off."""
        if pod := self.pods.get(uid):
            kept = self._kept.references(pod, registry)
            return make_pod_desired(pod, self.in_force_for(pod, registry), registry, kept=kept)
        if service := self.services.get(uid):
            force = self._in_force(uid, registry)
            keep = force is None and registry in self._kept_in(uid)
            return make_service_desired(force or service, registry, accepted=force is not None, keep=keep)
        if unit := self.gone.get(uid):
            return Desired(unit, gone=True)
        return None

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide between two living units that want one key: the newer Pod (addresses move), the older GrpcService."""
        pod, other = self.pods.get(uid), self.pods.get(rival)
        if pod and other:
            return (pod.created, pod.uid) > (other.created, other.uid)
        service, elder = self.services.get(uid), self.services.get(rival)
        if service and elder:
            return service.age_order < elder.age_order
        return pod is not None or service is not None

    # -- judging ----------------------------------------------------------------------------------------------------

    def _changed(self, uid: str, old: GrpcService | None, new: GrpcService | None) -> set[str]:
        """Judge a changed GrpcService again, and whoever its claims concern; collect the owners of all of them.

        Where that fails it goes on with the next try, for which nothing has changed any more.
        """
        service, is_again = new or old, uid in self._unjudged
        left = self._unjudged.setdefault(uid, _Unjudged({}, {uid}))
        left.services[uid] = None
        if is_again:
            left.units.update(*map(self._may_concern, left.services))
        left.services |= dict.fromkeys(self._hold(service, is_gone=new is None) if service else ())
        for each in tuple(left.services):
            left.units |= self._judge(each)
            del left.services[each]
        del self._unjudged[uid]
        return left.units

    def _may_concern(self, uid: str) -> set[str]:
        """Return all that a GrpcService may concern whose judging has failed: what it selected before is not known."""
        known = self.services.get(uid) or self.gone.get(uid)
        return {uid, *(pod.uid for pod in self.pods_in(known.namespace))} if known else {uid}

    def judge_again(self, uid: str) -> set[str]:
        """Judge a GrpcService again; return all owners that this may concern."""
        return {uid} | self._judge(uid) if uid in self.services else set()

    def _hold(self, service: GrpcService, *, is_gone: bool = False) -> set[str]:
        claims: dict[Claim, str] = {}
        if not is_gone:
            reserved = self._reserved.get(service.uid, {})
            claims = {**self._take_over(service), **reserved, **read_claims(service.status)}
            self.latest_claim = max(self.latest_claim, *claims.values(), "")
        return self._ledger.hold(service.uid, service.namespace, service.created, claims)

    def _judge(self, uid: str) -> set[str]:
        """Decide again on one GrpcService; return all owners that may be concerned, none if nothing has changed.

        Except for Pods that it does not select and that have records of it: who knows the registries knows these.
        """
        before, kept, verdict = self._selectors.forms(uid), self._kept_in(uid), self._verdicts.get(uid)
        service = self.services.get(uid)
        if uid in self.gone:
            self._drop(uid)
        elif service:
            self._take(service, *self._decide(service))
        self._index(uid)
        if (before, kept, verdict) == (self._selectors.forms(uid), self._kept_in(uid), self._verdicts.get(uid)):
            return set()
        units = {uid}
        for each in {id(each): each for each in (*before, *self._selectors.forms(uid))}.values():
            units.update(pod.uid for pod in self.selected_by(each))
        return units

    def _kept_in(self, uid: str) -> frozenset[str]:
        """Return the registries in which all that stands of a GrpcService is kept, for lack of a spec in force."""
        wish = self._wishes.get(uid)
        return wish.kept_in if wish and uid not in self._standing else frozenset()

    def _decide(self, service: GrpcService) -> tuple[Verdict, Wish]:
        """Judge a GrpcService, and say what is in force of it meanwhile."""
        spec, uid = service.spec, service.uid
        self._ledger.wait(uid, None)
        held = read_claims(service.status)
        lost = self._ledger.find_blocked(uid, service.namespace, held)
        verdict, is_free = self._make_verdict(service, held)
        if lost:  # it may be another than who has the name that is asked for
            self._ledger.wait(uid, lost.holder)
        unknown = [name for name in spec.registries if name not in self._registries] if spec else []
        return verdict, judge_wish(
            verdict.reason,
            is_partial=bool(unknown),
            may_keep=lost is None and (bool(held) or is_free),
            registries=self._registries,
            named=spec.registries if spec else (),
        )

    def _make_verdict(self, service: GrpcService, held: Mapping[Claim, str]) -> tuple[Verdict, bool]:
        """Judge a GrpcService; say too whether nobody else's claim is in its way."""
        spec = service.claimed
        if spec is None:
            return _refuse(Reason.INVALID_SPEC, "; ".join(service.faults)), False
        claims = claims_of(spec, self._registries)
        if fault := self._rules.reserved_fault(spec, claims, held):
            reason = Reason.PREFIX_NOT_ALLOWED if spec.prefix else Reason.NAME_RESERVED
            return _refuse(reason, f"{fault}; choose another name or prefix"), False
        blocked = self._ledger.find_blocked(service.uid, service.namespace, claims)
        if fault := self._rules.prefix_fault(spec):
            return _refuse(Reason.PREFIX_NOT_ALLOWED, fault), blocked is None
        if blocked:
            self._ledger.wait(service.uid, blocked.holder)
            return self._make_taken(spec, blocked), False
        if service.spec is None:
            return _refuse(service.reason, "; ".join(service.faults)), True
        return (ASKING if any(claim not in held for claim in claims) else self._judge_registries(spec)), True

    def _judge_registries(self, spec: Spec) -> Verdict:
        unknown = ", ".join(name for name in spec.registries if name not in self._registries)
        known = ", ".join(sorted(self._registries))
        message = f"spec.registries names {unknown}; this operator knows {known}; existing keys stay"
        return _refuse(Reason.UNKNOWN_REGISTRY, message) if unknown else ACCEPTED

    def _make_taken(self, spec: Spec, blocked: Blocked) -> Verdict:
        holder = self.services.get(blocked.holder)
        whose = f"the GrpcService {holder.reference}" if holder else "another GrpcService"
        prefix = blocked.claim.prefix.decode(errors="replace")
        message = (
            f"the name {spec.registry_name} belongs to {whose}: its claim in registry {blocked.claim.registry} equals, "
        )
        text = f"{message}contains or lies within {prefix}; choose another spec.name"
        return _refuse(Reason.NAME_TAKEN, text)._replace(registry=blocked.claim.registry)

    def _take(self, service: GrpcService, verdict: Verdict, wish: Wish) -> None:
        uid = service.uid
        self._verdicts[uid], self._wishes[uid] = verdict, wish
        if wish.is_whole:
            self._standing[uid] = service
        elif (standing := self._standing.get(uid)) and not self._still_holds(standing, service):
            del self._standing[uid]
        _set_member(self.releasing, uid, belongs=bool(self._spare(service)))  # after it is known what exists
        if verdict is ASKING:
            self.asking.note(service)
        else:
            self.asking.forget(service.uid)
        self._kept.note(service, self._kept_in(uid))

    def _still_holds(self, standing: GrpcService, service: GrpcService) -> bool:
        """Return whether a GrpcService still holds all that it claimed when its spec could last be obeyed."""
        claims = claims_of(standing.claimed, self._registries) if standing.claimed else ()
        held = read_claims(service.status)
        blocked = self._ledger.find_blocked(service.uid, service.namespace, claims)
        return blocked is None and all(claim in held for claim in claims)

    def _drop(self, uid: str) -> None:
        self._ledger.wait(uid, None)
        service = self.services.pop(uid, None)
        if service:
            self._kept.note(service, frozenset())
        self._inherited.pop(uid, None)
        self.asking.forget(uid)
        for known in (self._verdicts, self._wishes, self._standing, self.releasing):
            known.pop(uid, None)

    def _index(self, uid: str) -> None:
        """Record by which labels a GrpcService is found; what is not in force slows down no Pod's events."""
        service, standing = self.services.get(uid), self._standing.get(uid)
        forms = (service, standing if standing is not service else None)
        found = (Form(each, each is standing or self._wishes[uid].is_obeyed) for each in forms if each)
        self._selectors.put(uid, found)


def _refuse(reason: Reason, message: str) -> Verdict:
    return Verdict(accepted=False, reason=reason, message=message)


def _set_member(members: dict[str, None], uid: str, *, belongs: bool) -> None:
    if belongs:
        members[uid] = None
    else:
        members.pop(uid, None)


def _goes_to(service: GrpcService, registry: str) -> bool:
    return service.spec is not None and registry in service.spec.registries
