"""The status of a GrpcService: counts and two conditions, in words that tell its owner what to do next. Pure.

`Accepted` says whether the operator takes the GrpcService at all, `Programmed` whether the registry is true to it.
"""

from collections.abc import Mapping
from typing import Any

from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.tally import Counts
from grpc_etcd_operator.core.world import Verdict

SHOWN_FAULTS = 3  # arbitrary: a message is read by people


def make_status(
    service: GrpcService, verdict: Verdict, counts: Counts, down: Mapping[str, str], now: str
) -> dict[str, Any]:
    """Work out the status; `down` names registries that cannot be written now, and why; `now` is RFC 3339."""
    faults = sorted({fault for found in counts.faults.values() for fault in found}, key=lambda f: (f.reason, f.message))
    accepted = _judge_ports(verdict, counts, faults)
    programmed = _programmed(service, accepted, counts, faults, down)
    spec = service.spec
    return {
        "observedGeneration": service.generation,
        "registryName": spec.registry_name if spec else "",
        "endpoints": {
            "selected": counts.selected,
            "ready": counts.ready,
            "registered": counts.registered,
            "summary": f"{counts.registered}/{counts.ready}",
        },
        "conditions": [
            _condition("Accepted", accepted, service, now),
            _condition("Programmed", programmed, service, now),
        ],
    }


def is_same_status(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Say whether a status need not be written: nothing in it has changed."""
    return {key: old.get(key) for key in new} == dict(new)


def is_same_judgement(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Say whether two statuses differ in nothing but counts and the words about them."""
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
    portless = {unit for (unit, _), found in counts.faults.items() if any(f.reason == "PortNotFound" for f in found)}
    if verdict.accepted and portless and not counts.registered and len(portless) >= counts.ready > 0:
        fault = next(fault for fault in faults if fault.reason == "PortNotFound")
        return Verdict(accepted=False, reason="PortNotFound", message=fault.message)
    return verdict


def _programmed(
    service: GrpcService, accepted: Verdict, counts: Counts, faults: list[Fault], down: Mapping[str, str]
) -> Verdict:
    spec = service.spec
    if spec is None or not accepted.accepted:
        return Verdict(accepted=False, reason="NotAccepted", message="nothing is written; see the condition Accepted")
    if unreachable := [f"{name}: {down[name]}" for name in spec.registries if name in down]:
        message = f"cannot write to registry {'; '.join(unreachable)}; keys already there stay"
        return Verdict(accepted=False, reason="RegistryUnavailable", message=message)
    return _judge_faults(faults) or _judge_counts(counts, enable=spec.enable)


def _judge_faults(faults: list[Fault]) -> Verdict | None:
    """Report what is wrong with single Pods, the first of them in full."""
    if not faults:
        return None
    shown = "; ".join(fault.message for fault in faults[:SHOWN_FAULTS])
    more = len(faults) - SHOWN_FAULTS
    return Verdict(accepted=False, reason=faults[0].reason, message=shown + (f"; and {more} more" if more > 0 else ""))


def _judge_counts(counts: Counts, *, enable: bool) -> Verdict:
    if not enable:
        return Verdict(accepted=True, reason="Disabled", message="spec.enable is false: all endpoints are withdrawn")
    if counts.registered < counts.ready:
        message = f"{counts.registered} of {counts.ready} ready Pods are written"
        return Verdict(accepted=False, reason="Pending", message=message)
    if counts.ready:
        return Verdict(accepted=True, reason="Programmed", message="every ready Pod is written")
    if counts.selected:
        return Verdict(accepted=True, reason="NoReadyPods", message=f"none of {counts.selected} Pods is ready")
    message = "the selector matches no Pod; compare it with the Pods' labels"
    return Verdict(accepted=True, reason="NoPods", message=message)


def _condition(kind: str, verdict: Verdict, service: GrpcService, now: str) -> dict[str, Any]:
    status = "True" if verdict.accepted else "False"
    old: Mapping[str, Any] = next(
        (each for each in service.status.get("conditions") or () if each.get("type") == kind), {}
    )
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    return {
        "type": kind,
        "status": status,
        "reason": verdict.reason,
        "message": verdict.message,
        "observedGeneration": service.generation,
        "lastTransitionTime": since or now,
    }
