"""The status of a GrpcService: counts and conditions, in words that report its owner what to do next. Pure.

`Accepted` says whether the operator takes the GrpcService at all, `Programmed` whether the registry is true to it.
`Ready` sums up both, and `Stalled` is there (and true) only where waiting does not help: from these two and
`observedGeneration` kstatus, and with it Flux and Helm, computes whether an object is current, in progress or failed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpc_etcd.registry.escaping import escape
from grpc_etcd_operator.core.cluster import Verdict
from grpc_etcd_operator.core.counts import Counts
from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.reasons import OUT_OF_REACH, PASSING, UNASKED, UNREADABLE, Reason
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.standing import Complaint

# The latter is in the condition once an Event has said so: whoever leads next reads it there, and posts none.
NO_PODS_WORDS = "the selector matches no Pod of this namespace"
NO_PODS_REPORTED_WORDS = "the selector has matched no Pod of this namespace for a while"
PODS_REMEDY = (
    "allow the operator's ServiceAccount to get, list and watch pods there (a Role with its RoleBinding, or the "
    "ClusterRole if all namespaces are watched; the chart creates them), or remove the namespace from "
    "watchNamespaces (--namespace)"
)
SHOWN_FAULTS = 3  # arbitrary: a message is read by people
OURS = {"Accepted", "Programmed", "Ready", "Stalled"}
MOST_CONDITIONS = 8  # what the CRD takes
MESSAGE_CHARACTERS = 32_768  # what the CRD takes of a message: no status is written with a longer one


def make_status(  # noqa: PLR0913, PLR0917  all that a status is made of
    service: GrpcService,
    verdict: Verdict,
    counts: Counts,
    down: Mapping[str, str],
    now: str,
    written_to: Sequence[str] = (),
    *,
    is_long_vacant: bool = False,
    is_reported_vacant: bool = False,
    pod_selector: str = "",
    unseen: str = "",
) -> dict[str, Any]:
    """Work out the status; `down` names registries that cannot be written now, and why; `now` is RFC 3339.

    `written_to` are the registries to which something is written though the GrpcService is not accepted. With
    `is_long_vacant` it has had no Pod for longer than any rollout takes, with `is_reported_vacant` an Event has said
    so. `pod_selector` is the operator's own, which limits what Pods it sees. `unseen` says why its Pods may not be
    read: then nothing is said that depends on them, and the counts are taken out.
    """
    if unseen:
        accepted, programmed = verdict, _judge_unseen(service, verdict, down, unseen)
    else:
        faults = _sort_faults(counts)
        accepted = _judge_ports(verdict, counts, faults)
        words = write_vacancy(service, pod_selector, is_reported=is_reported_vacant)
        vacancy = _judge_vacancy(service, words, is_long=is_long_vacant)
        programmed = _programmed(service, accepted, counts, faults, down, written_to, vacancy)
    spec = service.spec
    status = {
        "observedGeneration": service.generation,
        "registryName": spec.registry_name if spec else "",
        "endpoints": None if unseen else _write_counts(counts),
        "conditions": [
            _condition("Accepted", accepted, service, now),
            _condition("Programmed", programmed, service, now),
            *_summarize(service, accepted, programmed, now, is_given_up=is_reported_vacant),
        ],
    }
    return renew_status(status, service)


def renew_status(status: Mapping[str, Any], service: GrpcService) -> dict[str, Any]:
    """Return a status with the conditions that others have set by now, which stay as they are, and all where they are.

    To put them in another order would be a change, which who sorts them would undo again and again.
    """
    known = service.status.get("conditions") or ()
    ours = [each for each in status["conditions"] if each["type"] in OURS]
    foreign = [each for each in known if each.get("type") not in OURS]
    places = {each.get("type"): place for place, each in enumerate(known)}
    kept = [*ours, *foreign][:MOST_CONDITIONS]
    return {**status, "conditions": sorted(kept, key=lambda each: places.get(each.get("type"), len(places)))}


def _summarize(
    service: GrpcService, accepted: Verdict, programmed: Verdict, now: str, *, is_given_up: bool
) -> list[dict[str, Any]]:
    """Sum up both conditions; `is_given_up` says that the first Pod has been waited for long enough."""
    ready = programmed if accepted.accepted else accepted
    is_stalled = not ready.accepted and (is_given_up if ready.reason == Reason.NO_PODS else ready.reason not in PASSING)
    stalled = [_condition("Stalled", ready._replace(accepted=True), service, now)] if is_stalled else []
    return [_condition("Ready", ready, service, now), *stalled]


def _sort_faults(counts: Counts) -> list[Fault]:
    """Sort faults, those first that somebody has to fix: the first one's reason is the condition's."""
    found = {fault for faults in counts.faults.values() for fault in faults}
    return sorted(found, key=lambda f: (f.reason in PASSING, f.reason, f.message))


def _write_counts(counts: Counts) -> dict[str, Any]:
    return {
        "selected": counts.selected,
        "ready": counts.ready,
        "registered": counts.registered,
        "summary": f"{counts.registered}/{counts.ready}",
    }


def _judge_unseen(service: GrpcService, accepted: Verdict, down: Mapping[str, str], unseen: str) -> Verdict:
    """Return what is known without a look at the Pods."""
    pods = f"the Pods of namespace {service.namespace} are not known: {unseen}; {PODS_REMEDY}"
    if accepted.reason == Reason.PENDING:
        return accepted
    if not accepted.accepted:
        what = f"the spec is not applied ({accepted.reason}), see the condition Accepted"
        return Verdict(accepted=False, reason=Reason.NOT_ACCEPTED, message=f"{what}; existing keys stay; {pods}")
    return _judge_registries(service, down) or Verdict(
        accepted=False, reason=Reason.PODS_UNREADABLE, message=f"{pods}; until then their keys stay as they are"
    )


def is_same_status(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether a status need not be written: nothing in it has changed."""
    return {key: old.get(key) for key in new} == dict(new)


def is_same_judgement(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether two statuses differ in nothing but counts and the words about them."""
    judgements = [
        (
            status.get("observedGeneration"),
            status.get("registryName"),
            *((each["type"], each["status"], each["reason"]) for each in status.get("conditions") or ()),
        )
        for status in (old, new)
    ]
    return judgements[0] == judgements[1]


def _judge_ports(verdict: Verdict, counts: Counts, faults: list[Fault]) -> Verdict:
    """Refuse a GrpcService whose port none of its Pods has."""
    if verdict.accepted and is_portless(counts):
        fault = next(fault for fault in faults if fault.reason == Reason.PORT_NOT_FOUND)
        return Verdict(accepted=False, reason=Reason.PORT_NOT_FOUND, message=fault.message)
    return verdict


def is_portless(counts: Counts) -> bool:
    """Return whether none of a GrpcService's ready Pods has its port."""
    portless = {
        unit for (unit, _), found in counts.faults.items() if any(f.reason == Reason.PORT_NOT_FOUND for f in found)
    }
    return bool(portless) and not counts.registered and len(portless) >= counts.ready > 0


def _programmed(  # noqa: PLR0913, PLR0917  all that a status is made of
    service: GrpcService,
    accepted: Verdict,
    counts: Counts,
    faults: list[Fault],
    down: Mapping[str, str],
    written_to: Sequence[str],
    vacancy: Verdict,
) -> Verdict:
    spec = service.spec
    if spec is None or not accepted.accepted:
        return _not_accepted(accepted, counts, [name for name in written_to if name not in down])
    if fault := _judge_registries(service, down):
        return fault
    if is_vacant(service, accepted, counts) and not faults:
        return vacancy
    return _judge_faults(faults, counts) or _judge_counts(counts, enable=spec.enable)


def _judge_registries(service: GrpcService, down: Mapping[str, str]) -> Verdict | None:
    names = service.spec.registries if service.spec else ()
    unreachable = [f"{name}: {down[name].rstrip('.')}" for name in names if name in down]
    if not unreachable:
        return None
    message = f"cannot write to registry {'; '.join(unreachable)}; existing keys stay"
    reasons = [text.reason for name in names if isinstance(text := down.get(name), Complaint)]
    return Verdict(accepted=False, reason=next(iter(reasons), Reason.REGISTRY_UNAVAILABLE), message=message)


def _not_accepted(accepted: Verdict, counts: Counts, written_to: Sequence[str]) -> Verdict:
    """Return what is true of the registries all the same: nothing is deregistered for a mistake."""
    if accepted.reason == Reason.PENDING:
        return accepted
    what = f"the spec is not applied ({accepted.reason}), see the condition Accepted"
    stands = f"existing keys stay: those of {counts.standing} Pods"
    if written_to:
        done = f"{counts.registered} of {counts.ready} ready Pods are registered in {', '.join(written_to)}"
        stands = stands if counts.standing else "existing keys stay"
        message = f"{what}; {done}, according to the applicable part of the spec or its last valid version; {stands}"
    elif counts.standing:
        message = f"{what}; {stands}"
    else:
        message = f"{what}; nothing is written"
    return Verdict(accepted=False, reason=Reason.NOT_ACCEPTED, message=message)


def _judge_faults(faults: list[Fault], counts: Counts) -> Verdict | None:
    """Report what is wrong with single Pods, the first of them in full."""
    if not faults:
        return None
    messages = _drop_repeated([fault.message for fault in faults])
    shown = "; ".join(messages[:SHOWN_FAULTS])
    more = len(messages) - SHOWN_FAULTS
    stands = f"; existing keys stay: those of {counts.standing} Pods" if counts.standing else ""
    more_of_them = f"; and {more} more" if more > 0 else ""
    return Verdict(accepted=False, reason=faults[0].reason, message=shown + more_of_them + stands)


def _drop_repeated(messages: Sequence[str]) -> list[str]:
    """Leave out what another message quotes after a colon, as a Pod that waits for what is refused does."""
    quoted = {tail for each in messages if (tail := each.partition(": ")[2])}
    return [each for each in messages if each not in quoted]


def _judge_counts(counts: Counts, *, enable: bool) -> Verdict:
    if not enable:
        return Verdict(accepted=True, reason=Reason.DISABLED, message="spec.enable is false: all endpoints are deleted")
    if counts.registered < counts.ready:
        message = f"{counts.registered} of {counts.ready} ready Pods are registered"
        return Verdict(accepted=False, reason=Reason.PENDING, message=message)
    if counts.ready:
        return Verdict(accepted=True, reason=Reason.PROGRAMMED, message="every ready Pod is registered")
    return Verdict(accepted=True, reason=Reason.NO_READY_PODS, message=f"none of {counts.selected} Pods is ready")


def judge_registrations(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Reason, str] | None:
    """Return what is worth an Event of a status's registrations: the first is there, or the last is gone.

    A Pod that lacks keys in one registry or layout counts as not registered, and is called all the same: that the last
    is gone is said only where nothing else is wrong.
    """
    was, now = (int((status.get("endpoints") or {}).get("registered") or 0) for status in (old, new))
    if not new.get("endpoints") or bool(was) == bool(now):
        return None
    if now:
        return Reason.REGISTERED, f"{now} of {new['endpoints']['ready']} ready Pods are registered"
    programmed = next(each for each in new["conditions"] if each["type"] == "Programmed")
    is_gone = programmed["status"] == "True" or programmed["reason"] == Reason.NO_PODS
    return (Reason.DEREGISTERED, f"no Pod is registered any more: {programmed['message']}") if is_gone else None


def is_vacant(service: GrpcService, verdict: Verdict, counts: Counts) -> bool:
    """Return whether a GrpcService that is to register Pods selects none at all."""
    return bool(service.spec and service.spec.enable and verdict.accepted and not counts.selected)


def was_reported_vacant(service: GrpcService) -> bool:
    """Return whether the status says that an Event has reported of this spec's selector that it matches nothing."""
    reported = _find_condition(service, "Programmed")
    is_of_this = (reported.get("status"), reported.get("observedGeneration")) == ("False", service.generation)
    return is_of_this and str(reported.get("message")).startswith(NO_PODS_REPORTED_WORDS)


def write_vacancy(service: GrpcService, pod_selector: str, *, is_reported: bool = False) -> str:
    """Return that a GrpcService has no Pod, and what to look at: its selector may be that of a Service.

    Pods that the operator's own selector leaves out may be there.
    """
    whose = f"; it is that of the Service {service.service_ref}" if service.service_ref else ""
    words = NO_PODS_REPORTED_WORDS if is_reported else NO_PODS_WORDS
    among = f" among those that the operator's own podSelector ({pod_selector}) finds" if pod_selector else ""
    what = "both" if pod_selector else "it"
    return f"{words}{among}{whose}; compare {what} with the Pods' labels (kubectl get pods --show-labels)"


def _judge_vacancy(service: GrpcService, words: str, *, is_long: bool) -> Verdict:
    """Refuse to call it programmed that a selector matches nothing, unless it has just lost its last Pod.

    A GrpcService that was programmed stays so for a while: a rollout with the strategy Recreate is no reason to flap.
    """
    old = _find_condition(service, "Programmed")
    was_programmed = (old.get("status"), old.get("observedGeneration")) == ("True", service.generation)
    if was_programmed and not is_long:
        return Verdict(accepted=True, reason=Reason.NO_PODS, message="the selector matches no Pod any more")
    return Verdict(accepted=False, reason=Reason.NO_PODS, message=words)


def reaches_registries(service: GrpcService) -> bool | None:
    """Return whether who wrote a status could write to the GrpcService's registries; None: it does not say."""
    reason = _find_condition(service, "Programmed").get("reason")
    return None if reason is None or reason in UNASKED else reason not in OUT_OF_REACH


def _find_condition(service: GrpcService, kind: str) -> Mapping[str, Any]:
    return next((each for each in service.status.get("conditions") or () if each.get("type") == kind), {})


def _condition(kind: str, verdict: Verdict, service: GrpcService, now: str) -> dict[str, Any]:
    status = "Unknown" if verdict.reason in UNREADABLE else "True" if verdict.accepted else "False"
    old = _find_condition(service, kind)
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    return {
        "type": kind,
        "status": status,
        "reason": verdict.reason,
        "message": escape(verdict.message)[:MESSAGE_CHARACTERS],  # names from etcd among them
        "observedGeneration": service.generation,
        "lastTransitionTime": since or now,
    }


def has_condition(pod: Mapping[str, Any], wanted: Mapping[str, str], parts: Iterable[str] = ("type", "status")) -> bool:
    """Return whether a Pod has a condition, as far as these parts of it go."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(all(each.get(part, "") == wanted[part] for part in parts) for each in conditions)


def programmed_since(service: GrpcService) -> str:
    """Return since when the condition Programmed is what it is, as Kubernetes writes it; empty where there is none."""
    return str(_find_condition(service, "Programmed").get("lastTransitionTime") or "")
