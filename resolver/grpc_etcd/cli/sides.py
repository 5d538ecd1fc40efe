"""Look at both sides once: Kubernetes first, then etcd, so that what a Pod has just become can have been written."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from grpc_etcd.cli.connecting import Connection
from grpc_etcd.cli.etcd_search import UnreachedError
from grpc_etcd.etcd import EtcdError, PermissionDenied
from grpc_etcd.inspect.causes import put_causes_first
from grpc_etcd.inspect.checks import find_faults
from grpc_etcd.inspect.cluster import ClusterFacts
from grpc_etcd.inspect.cluster_checks import find_cluster_faults
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.kubernetes import Kubernetes, KubernetesError, observe
from grpc_etcd.inspect.operators import OperatorFacts
from grpc_etcd.inspect.probes import Part, explain_failure, find_cause, gather_facts
from grpc_etcd.inspect.reading import read_operators
from grpc_etcd.inspect.registration_checks import find_registration_faults, unregistered_pods
from grpc_etcd.inspect.service_checks import find_service_faults


@dataclass(frozen=True, slots=True)
class Sides:
    """What is looked at. An empty namespace means all; `registry` is how the operator's settings call this etcd."""

    connection: Connection | None
    kubernetes: Kubernetes | None
    namespace: str
    name: str | None
    registry: str
    is_asked_for: bool  # that Kubernetes is looked at, by an option
    is_namespace_asked_for: bool
    unreached: Finding | None = None  # why there is no connection, where one through kubectl was tried


class Look(NamedTuple):
    """What was found; `was_read` says whether anything could be looked at."""

    findings: list[Finding]
    was_read: bool
    unregistered: frozenset[str] = frozenset()  # UIDs of ready Pods without keys


def look(sides: Sides, among: frozenset[str] | None = None) -> Look:
    """Look at both sides once; `among` are the Pods that were ready and not registered before."""
    cluster, in_cluster = look_at_cluster(sides)
    in_etcd, operators, is_etcd_read = _look_at_etcd(sides, cluster)
    findings = [*in_cluster, *in_etcd]
    if cluster is not None:
        findings += [*find_service_faults(cluster), *find_registration_faults(cluster, operators, among)]
        findings = put_causes_first(findings, cluster, sides.name)
    lacking = unregistered_pods(cluster, operators) if cluster and operators else frozenset()
    return Look(findings, cluster is not None or is_etcd_read, lacking)


def look_at_cluster(sides: Sides) -> tuple[ClusterFacts | None, list[Finding]]:
    """Return what Kubernetes shows of the GrpcServices that are asked for; None: it cannot be read."""
    if sides.kubernetes is None:
        return None, []
    try:
        seen = observe(sides.kubernetes, sides.namespace)
    except KubernetesError as error:
        code = Code.KUBERNETES_FAILED if sides.is_asked_for else Code.KUBERNETES_UNREACHABLE
        return None, [Finding(code, "Kubernetes", str(error), "kubectl version, or skip Kubernetes: --no-kubernetes")]
    named = tuple(each for each in seen.services if sides.name in {None, each.registry_name, each.name})
    others = (*seen.others, *(each for each in seen.services if each not in named))
    return replace(seen, services=named, others=others), list(find_cluster_faults(seen, sides.name, named))


def _look_at_etcd(sides: Sides, cluster: ClusterFacts | None) -> tuple[list[Finding], OperatorFacts | None, bool]:
    """Return what is wrong with the registry, what operators have recorded there, and whether etcd answered."""
    if sides.connection is None:
        return [sides.unreached or UNSET], None, False
    connection, name = sides.connection, _registry_name(sides.name, cluster)
    ready = frozenset(pod.ip for pod in cluster.pods if pod.ready) if cluster else frozenset()
    try:
        operators = read_operators(connection.etcd, sides.registry)
        facts = gather_facts(connection.etcd, connection.layouts, name, _part(sides, cluster), ready)
    except EtcdError as error:
        is_answering = isinstance(error, PermissionDenied)
        return _explain(connection, find_cause(connection.etcd, error)), None, is_answering
    return find_faults(facts), operators, True


def _explain(connection: Connection, error: EtcdError) -> list[Finding]:
    """Return why etcd cannot be read; where it is reached through kubectl, by its own name and with the way to it."""
    found = list(explain_failure(connection.settings, error))
    if (reach := connection.reach) is None:
        return found
    return [replace(each, subject="etcd", problem=f"{each.problem}; {reach.describe()}") for each in found]


def _registry_name(name: str | None, cluster: ClusterFacts | None) -> str | None:
    """Return the name to look for in etcd: where a GrpcService was asked for by its own, the one that it registers."""
    registered = {each.registry_name for each in cluster.services} if name and cluster else set()
    return registered.pop() if len(registered) == 1 else name


def _part(sides: Sides, cluster: ClusterFacts | None) -> Part | None:
    """Return what of the registry is judged: all of it, unless a namespace was asked for and can be read."""
    if sides.name or not sides.is_namespace_asked_for or cluster is None:
        return None
    return Part(sides.namespace, frozenset(each.registry_name for each in cluster.services))


RUN_IN_POD = "kubectl --namespace grpc-etcd exec deploy/grpc-etcd-operator -- grpc-etcd check -A"
UNSET = Finding(Code.ONLY_KUBERNETES, "etcd", "it was not checked: no endpoints are set", RUN_IN_POD)


def unreached(error: UnreachedError) -> Finding:
    """Report that there is no way to etcd through kubectl: worth a warning where it is known where etcd is."""
    if error.is_visible:
        return Finding(Code.NOT_REACHED, "etcd", f"it was not checked: {error}", error.remedy)
    return replace(UNSET, problem=f"{UNSET.problem}, and {error}", remedy=error.remedy)
