"""What the operator says in the conditions of a GrpcService, each reason with its code and a command. Pure.

A test compares the reasons with the operator's own: tests/unit/inspect/test_same_as_operator.py.
"""

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping

from grpc_etcd.inspect.cluster import Condition, ServiceFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding, kubectl, patch_command
from grpc_etcd.inspect.nearness import is_misspelling

# What is said elsewhere, will pass, or is no fault.
SILENT = frozenset({"Accepted", "Pending", "Programmed", "NotAccepted", "Disabled", "NoReadyPods"})
CODES: Mapping[str, Code] = {
    "InvalidSpec": Code.INVALID_SPEC,
    "PrefixNotAllowed": Code.PREFIX_NOT_ALLOWED,
    "NameReserved": Code.NAME_RESERVED,
    "NameTaken": Code.NAME_TAKEN,
    "ServiceNotFound": Code.SERVICE_NOT_FOUND,
    "ServiceUnusable": Code.SERVICE_UNUSABLE,
    "ServicesUnreadable": Code.SERVICES_UNREADABLE,
    "UnknownRegistry": Code.UNKNOWN_REGISTRY,
    "PortNotFound": Code.NO_PORT,
    "NoPods": Code.NO_PODS,
    "PodsUnreadable": Code.PODS_UNREADABLE,
    "RegistryUnavailable": Code.REGISTRY_UNAVAILABLE,
    "NoLeader": Code.NO_LEADER,
    "ForeignLeader": Code.FOREIGN_LEADER,
    "Unwritable": Code.UNWRITABLE,
    "BadWeight": Code.BAD_WEIGHT,
    "KeyTaken": Code.KEY_TAKEN,
    "KeyShared": Code.KEY_SHARED,
    "PermissionDenied": Code.OPERATOR_DENIED,
    "RateLimited": Code.RATE_LIMITED,
    "InternalError": Code.INTERNAL_ERROR,
}
# What is found without the operator where Pods may be read, and where Services may be.
SEEN_IN_PODS = frozenset({Code.NO_PODS, Code.NO_PORT})
SEEN_IN_SERVICES = frozenset({Code.SERVICE_NOT_FOUND, Code.SERVICE_UNUSABLE, Code.NO_PORT})
# Whose messages have a command for etcd. Others may quote what a tenant wrote, which nobody should be made to type.
WITH_GRANTS = frozenset({Code.OPERATOR_DENIED, Code.REGISTRY_UNAVAILABLE, Code.NO_LEADER})
# Its last argument, a prefix, is quoted for the shell, in parts if it has quotation marks itself; text may follow.
GRANT = re.compile(r"""etcdctl role grant-permission \S+ --prefix=true \w+ (?:-- )?(?:'[^']*'|"[^"]*"|[^\s;'"])+""")
UNFILLED = " PREFIX"  # how a command ends that names no range: it is general advice
OPERATOR_LOG = "kubectl --namespace grpc-etcd logs deploy/grpc-etcd-operator --tail 50"


def condition_findings(service: ServiceFacts, seen: Collection[Code]) -> Iterator[Finding]:
    """Report the conditions that are not true, except for what is `seen` elsewhere."""
    for kind in ("Accepted", "Programmed"):
        condition = service.condition(kind)
        if condition.status not in {"False", "Unknown"} or condition.reason in SILENT:
            continue
        code = CODES.get(condition.reason, Code.OTHER_REASON)
        if code not in seen:
            stalled = " (stalled: waiting does not help)" if service.condition("Stalled").status == "True" else ""
            problem = f"{condition.reason}{stalled}: {condition.message}"
            yield Finding(code, f"GrpcService {service.reference}", problem, _remedy(code, service, condition))


def _remedy(code: Code, service: ServiceFacts, condition: Condition) -> str:
    if code in WITH_GRANTS and (grants := find_grants(condition.message)):
        return grants
    write = REMEDIES.get(code)
    return write(service, condition.message) if write else _on_service("describe", service)


def find_grants(message: str) -> str:
    """Return the commands for etcd that a message names; `ROLE` in them is whoever lacks the permission."""
    found = (each.rstrip(".,") for each in GRANT.findall(message))
    return "; ".join(dict.fromkeys(each for each in found if not each.endswith(UNFILLED)))


def _on_service(verb: str, service: ServiceFacts) -> str:
    return kubectl(service.namespace, verb, "grpcservice", service.name)


def _rename(service: ServiceFacts, _message: str) -> str:
    return patch_command(service.namespace, service.name, {"name": f"{service.namespace}-{service.registry_name}"})


def _drop_prefix(service: ServiceFacts, _message: str) -> str:
    return patch_command(service.namespace, service.name, {"prefix": None})


def _use_known_registries(service: ServiceFacts, message: str) -> str:
    found = re.search(r"this operator knows ([^;]+)", message)
    known = [each.strip() for each in found[1].split(",")] if found else []
    meant = [each if each in known else _find_meant(each, known) for each in service.registries]
    kept = list(dict.fromkeys(each for each in meant if each)) or (known if len(known) == 1 else [])
    if not kept:  # which of several is meant nobody can know, and one may be that of production
        return _on_service("edit", service)
    return patch_command(service.namespace, service.name, {"registries": kept})


def _find_meant(name: str, known: Collection[str]) -> str:
    return next((each for each in known if is_misspelling(name, each)), "")


def _find_writer(service: ServiceFacts, _message: str) -> str:
    return shlex.join(("grpc-etcd", "get", service.registry_name))


def _may_list(resource: str) -> Callable[[ServiceFacts, str], str]:
    account = "system:serviceaccount:grpc-etcd:grpc-etcd-operator"
    return lambda service, _: kubectl(service.namespace, "auth", "can-i", "list", resource, "--as", account)


def _see_log(_service: ServiceFacts, _message: str) -> str:
    return OPERATOR_LOG


REMEDIES: Mapping[Code, Callable[[ServiceFacts, str], str]] = {
    Code.INVALID_SPEC: lambda service, _: _on_service("edit", service),
    Code.UNWRITABLE: lambda service, _: _on_service("edit", service),
    Code.NAME_TAKEN: _rename,
    Code.NAME_RESERVED: _rename,
    Code.PREFIX_NOT_ALLOWED: _drop_prefix,
    Code.UNKNOWN_REGISTRY: _use_known_registries,
    Code.KEY_TAKEN: _find_writer,
    Code.KEY_SHARED: lambda service, _: kubectl(service.namespace, "get", "grpcservices", "-o", "wide"),
    Code.PODS_UNREADABLE: _may_list("pods"),
    Code.SERVICES_UNREADABLE: _may_list("services"),
    Code.SERVICE_NOT_FOUND: lambda service, _: kubectl(service.namespace, "get", "services"),
    Code.SERVICE_UNUSABLE: lambda service, _: kubectl(service.namespace, "get", "services", "-o", "wide"),
    Code.RATE_LIMITED: lambda service, _: kubectl(service.namespace, "get", "pods,grpcservices", "--watch"),
    Code.REGISTRY_UNAVAILABLE: _see_log,
    Code.NO_LEADER: _see_log,
    Code.FOREIGN_LEADER: _see_log,
    Code.INTERNAL_ERROR: _see_log,
}
