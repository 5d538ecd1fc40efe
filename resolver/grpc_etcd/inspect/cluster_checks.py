"""What is wrong with the cluster as a whole: the CRD, the caller's permissions, clocks. Pure."""

import shlex
from collections.abc import Iterator, Sequence

from grpc_etcd.inspect.cluster import ClusterFacts, Denied, ServiceFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding, kubectl

SKEW_SECONDS = 5.0  # arbitrary; tokens and certificates are usually given some minutes


def find_cluster_faults(cluster: ClusterFacts, name: str | None, found: Sequence[ServiceFacts]) -> Iterator[Finding]:
    """Report what is wrong; `found` are the GrpcServices that have the name that was asked for, if one was."""
    if not cluster.has_namespace:
        problem = f"there is no namespace {cluster.namespace!r}"
        yield Finding(Code.NO_NAMESPACE, "Kubernetes", problem, "kubectl get namespaces, or choose another: -n NAME")
    if not cluster.has_crd:
        install = "kubectl apply -f crds/grpcservices.yaml, or choose another cluster: --context NAME"
        yield Finding(Code.NO_CRD, "Kubernetes", "it does not serve GrpcServices: the CRD is not installed", install)
    elif name and not found and not any(each.resource == "grpcservices" for each in cluster.denied):
        yield from _unknown_name(cluster, name)
    for denied in cluster.denied:
        yield _write_denied(denied)
    if abs(cluster.skew_seconds) > SKEW_SECONDS:
        order = "ahead of" if cluster.skew_seconds > 0 else "behind"
        problem = f"the API server's clock is {abs(cluster.skew_seconds):.0f} s {order} that of this machine"
        yield Finding(Code.CLOCK_SKEW, "clocks", problem, "timedatectl set-ntp true")


def _unknown_name(cluster: ClusterFacts, name: str) -> Iterator[Finding]:
    elsewhere = next((each for each in cluster.others if name in {each.registry_name, each.name}), None)
    where = f"namespace {cluster.namespace}" if cluster.namespace else "any namespace"
    problem = f"no GrpcService of {where} has the name {name!r}"
    if elsewhere:
        problem += f", but {elsewhere.reference} has"
    remedy = (
        shlex.join(("grpc-etcd", "check", name, "-n", elsewhere.namespace))
        if elsewhere
        else "kubectl get grpcservices -A"
    )
    yield Finding(Code.NO_SUCH_GRPCSERVICE, name, problem, remedy)


def _write_denied(denied: Denied) -> Finding:
    where = f"namespace {denied.namespace}" if denied.namespace else "all namespaces"
    kind, role = "role" if denied.namespace else "clusterrole", f"check-{denied.resource}"
    resource = "grpcservices.grpc-etcd.dev" if denied.resource == "grpcservices" else denied.resource
    make = kubectl(denied.namespace, "create", kind, role, "--verb=list", f"--resource={resource}")
    remedy = f"{make}; {kubectl(denied.namespace, 'create', f'{kind}binding', role, f'--{kind}={role}', '--user=USER')}"
    return Finding(Code.MAY_NOT_READ, where, f"the caller is not allowed to list {denied.resource} there", remedy)
