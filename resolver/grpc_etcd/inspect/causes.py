"""Put causes before what follows from them, where both sides of one mistake were found. Pure.

A mistake in a GrpcService shows in Kubernetes and, as something that is missing, in etcd. Who reads the first line only
is to read what has to be changed. A port is judged here, as it takes both: what Pods declare, and who answers.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from grpc_etcd.inspect.cluster import ClusterFacts, ServiceFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding, patch_command
from grpc_etcd.inspect.service_checks import choose_port, list_names, subject_of
from grpc_etcd.registry.endpoint import join_address

REFUSED = os.strerror(errno.ECONNREFUSED)  # its machine answers, and nothing listens at the port
UNANSWERED = (Code.NOT_FROM_HERE, Code.NO_ANSWER)
UNDECLARED = (Code.UNDECLARED_PORT, Code.SERVICE_PORT)
AWAY = (Code.NO_LEADER, Code.OPERATOR_DOWN)


def put_causes_first(findings: Sequence[Finding], cluster: ClusterFacts, name: str | None) -> list[Finding]:
    """Return findings with those behind that follow from others; `name` is the service that was asked for."""
    services = cluster.services if name else ()
    found = _judge_ports(findings, cluster)
    effects = [each for each in found if each.code in {Code.NO_RECORDS, Code.NOT_SYNCED}]
    causes = [each for each in found if each not in effects]
    explained = (_explain(each, causes, services) for each in effects)
    return [*causes, *(each for each in explained if each is not None)]


def _explain(effect: Finding, causes: Iterable[Finding], services: Sequence[ServiceFacts]) -> Finding | None:
    """Return what is missing with the remedy of its cause; None where it is missing on purpose."""
    if effect.code is Code.NOT_SYNCED:
        remedy = next((each.remedy for each in causes if each.code in AWAY), effect.remedy)
        return replace(effect, remedy=remedy)
    if not services:
        return effect
    if not any(each.enable for each in services):
        return None
    subjects = {subject_of(each) for each in services}
    of_service = [each for each in causes if each.subject in subjects]
    if error := next((each for each in of_service if each.is_error), None):
        return replace(effect, remedy=f"First fix the GrpcService: {error.code}.")
    if unready := next((each for each in of_service if each.code is Code.NO_READY_PODS), None):
        # As a warning it comes behind the error that it leads to.
        return replace(effect, problem=f"{effect.problem}, since {unready.problem}", remedy=unready.remedy)
    there = f"{next(iter(subjects))} exists: compare etcd's endpoints, prefix and layout with the operator's."
    return replace(effect, remedy=there)


def _judge_ports(findings: Sequence[Finding], cluster: ClusterFacts) -> list[Finding]:
    """Replace what is found of a port that no container declares, where each ready Pod refuses a connection to it."""
    undeclared = {each.subject for each in findings if each.code in UNDECLARED}
    refusing = {each.subject for each in findings if each.code in UNANSWERED and REFUSED in each.problem}
    worse: list[Finding] = []
    replaced: set[tuple[Code, str]] = set()
    for service in cluster.services:
        if subject_of(service) not in undeclared or not isinstance(service.port, int):
            continue
        addresses = [join_address(each.ip, service.port) for each in cluster.selected(service) if each.is_serving()]
        if addresses and refusing.issuperset(addresses):
            worse.append(_nothing_listens(service, addresses, cluster))
            replaced |= {(code, subject_of(service)) for code in UNDECLARED}
            replaced |= {(code, each) for code in UNANSWERED for each in addresses}
    return [*worse, *(each for each in findings if (each.code, each.subject) not in replaced)]


def _nothing_listens(service: ServiceFacts, addresses: Sequence[str], cluster: ClusterFacts) -> Finding:
    choice = choose_port(cluster.selected(service))
    what = "no container declares it, and every ready Pod refuses a connection to it"
    problem = f"nothing listens at the port {service.port}: {what} ({list_names(addresses)})"
    remedy = "Compare spec.port with the port on which the server listens."
    if choice is not None:
        remedy = patch_command(service.namespace, service.name, {"port": choice})
    return Finding(Code.NOTHING_LISTENS, subject_of(service), problem, remedy)
