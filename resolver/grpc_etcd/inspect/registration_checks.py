"""What is wrong between Kubernetes and a registry: who leads, which Pods lack keys or should have none, closed gates.

Pure. A Pod that has just become ready is registered a moment later, so what is found once may be over. It is looked at
twice: `settled` keeps what is found again, and of ready Pods without keys only those `among` the first look's count.
"""

from collections.abc import Iterable, Iterator, Sequence

from grpc_etcd.inspect.cluster import ClusterFacts, Deployment, PodFacts, ServiceFacts, find_port
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.conditions import CODES, OPERATOR_LOG
from grpc_etcd.inspect.findings import SHOW_OPERATORS, Finding, kubectl
from grpc_etcd.inspect.operators import Leader, OperatorFacts, Owned
from grpc_etcd.inspect.service_checks import count, list_names, subject_of, write_condition
from grpc_etcd.registry.escaping import escape_bytes, quote_argument

DEFAULT = Deployment("grpc-etcd", "grpc-etcd-operator", 0, 0)
PASSING = frozenset(
    {Code.NOT_REGISTERED, Code.REGISTERED_UNREADY, Code.REGISTERED_GONE, Code.GATE_WAITING, Code.MISSING_KEY}
)
UPGRADE = (
    "helm upgrade grpc-etcd-operator charts/grpc-etcd-operator --namespace grpc-etcd --reset-then-reuse-values --set "
)
INSTALL = (
    "helm install grpc-etcd-operator charts/grpc-etcd-operator --namespace grpc-etcd --create-namespace "
    "--set image.repository=REGISTRY/grpc-etcd-operator --set 'etcd.endpoints={HOST:PORT}'"
)


def settled(findings: Iterable[Finding], earlier: Iterable[Finding]) -> list[Finding]:
    """Return findings without those that may pass and were not there some time ago."""
    before = {(each.code, each.subject) for each in earlier}
    return [each for each in findings if each.code not in PASSING or (each.code, each.subject) in before]


def find_registration_faults(
    cluster: ClusterFacts, operators: OperatorFacts | None, among: frozenset[str] | None = None
) -> Iterator[Finding]:
    """Report what differs; without `operators`, whose records could not be read, only what Kubernetes shows.

    `among` are UIDs of Pods of which it counts that they are not registered; None: of all.
    """
    yield from _deployments(cluster)
    yield from _leaders(cluster, operators)
    yield from _barred(cluster, operators)
    yield from _gates(cluster, operators)
    if operators is not None:
        yield from _unregistered(cluster, operators, among)
        yield from _left_over(cluster, operators)
        yield from _left_behind(cluster, operators)


def is_led(cluster: ClusterFacts, operators: OperatorFacts | None) -> bool:
    """Return whether an operator works, as far as can be seen."""
    if operators is not None:
        return bool(operators.leaders_of(cluster))
    return cluster.deployments is None or any(each.ready and not each.dry_run for each in cluster.deployments)


def _deployments(cluster: ClusterFacts) -> Iterator[Finding]:
    for each in cluster.deployments or ():
        if not each.ready:
            problem = "it is scaled to zero" if not each.wanted else f"none of {each.wanted} replicas is ready"
            subject = f"Deployment {each.namespace}/{each.name}"
            yield Finding(Code.OPERATOR_DOWN, subject, problem, _revive(each))
    if not cluster.deployments:
        seen, remedy = (
            "is not found by the chart's labels",
            "No action is needed if it was not installed with its chart.",
        )
        if cluster.deployments is None:
            seen, remedy = "cannot be listed", "No action is needed; an admin may be able to list it."
        yield Finding(Code.OPERATOR_UNSEEN, "operator", f"its Deployment {seen}", remedy)


def _leaders(cluster: ClusterFacts, operators: OperatorFacts | None) -> Iterator[Finding]:
    concerned = operators and any(operators.names_of(cluster) & {*each.registries} for each in cluster.services)
    if operators is None or not concerned:
        return
    leaders = operators.leaders_of(cluster)
    if not leaders:
        problem = f"no replica of this cluster's operator is leader in this etcd{_hint(cluster, operators)}"
        yield Finding(Code.NO_LEADER, f"registry {operators.registry}", problem, start_operator(cluster))
        return
    for namespace in dict.fromkeys(service.namespace for service in cluster.services):
        if not _serves(leaders, namespace):
            yield Finding(Code.NOT_SERVED, f"namespace {namespace}", *_explain_scope(cluster, leaders))


def _barred(cluster: ClusterFacts, operators: OperatorFacts | None) -> Iterator[Finding]:
    """Report namespaces that the operator serves and may not read: it cannot write that into statuses there."""
    leaders = operators.leaders_of(cluster) if operators else ()
    for namespace in dict.fromkeys(each.namespace for each in cluster.barred):
        if leaders and not _serves(leaders, namespace):
            continue
        resources = " and ".join(each.resource for each in cluster.barred if each.namespace == namespace)
        what = f"the operator ({_user(cluster)}) is not allowed to list {resources} there"
        problem = f"{what}: keys, statuses and gates stay as they are, whatever becomes of the Pods"
        yield Finding(Code.PODS_UNREADABLE, f"namespace {namespace}", problem, UPGRADE.removesuffix(" --set "))


def _serves(leaders: Sequence[Leader], namespace: str) -> bool:
    return any(leader.serves(namespace) for leader in leaders)


def _explain_scope(cluster: ClusterFacts, leaders: Sequence[Leader]) -> tuple[str, str]:
    """Return which namespaces are served, and the one command that serves all others, too: it sets the whole list."""
    served = list(dict.fromkeys(each for leader in leaders for each in leader.namespaces))
    named = dict.fromkeys(service.namespace for service in cluster.services)
    named |= dict.fromkeys(pod.namespace for pod in cluster.pods if pod.waits_at_gate)
    missing = [each for each in named if not _serves(leaders, each)]
    remedy = f"{UPGRADE}'watchNamespaces={{{','.join((*served, *missing))}}}'"
    return f"the leader serves only {list_names(served)}", remedy


def _hint(cluster: ClusterFacts, operators: OperatorFacts) -> str:
    if any(each.dry_run for each in cluster.deployments or ()):
        return ": it runs with dryRun=true, so it writes nothing"
    if any(each.ready for each in cluster.deployments or ()):
        return ", although replicas are ready: check that it is the etcd in the operator's settings"
    return (
        f"; there are leaders for {list_names(each.cluster for each in operators.leaders)}" if operators.leaders else ""
    )


def start_operator(cluster: ClusterFacts) -> str:
    """Write the command that starts an operator, or shows why it does not."""
    if cluster.deployments is None:
        return SHOW_OPERATORS
    if not cluster.deployments:
        return INSTALL
    return _revive(cluster.deployments[0])


def _revive(deployment: Deployment) -> str:
    """Write the command that scales a Deployment up, ends its dry run, or shows why none of its Pods is ready."""
    name = f"deploy/{deployment.name}"
    if not deployment.wanted:
        return kubectl(deployment.namespace, "scale", name, "--replicas", "2")
    if deployment.dry_run and deployment.ready:
        return f"{UPGRADE}dryRun=false"
    return kubectl(deployment.namespace, "logs", name, "--tail", "50")


def _gates(cluster: ClusterFacts, operators: OperatorFacts | None) -> Iterator[Finding]:
    waiting = [pod for pod in cluster.pods if pod.waits_at_gate]
    if waiting and not is_led(cluster, operators):
        names = list_names(pod.reference for pod in waiting)
        problem = f"{count(len(waiting), 'Pod')} waiting at grpc-etcd.dev/registered, and there is no leader: {names}"
        yield Finding(Code.GATE_WITHOUT_OPERATOR, "readiness gate", problem, start_operator(cluster))
        return
    leaders = operators.leaders_of(cluster) if operators else ()
    for pod in waiting:
        why, remedy = _explain_gate(pod, cluster, leaders)
        yield Finding(Code.GATE_WAITING, f"Pod {pod.reference}", f"its gate is closed: {why}", remedy)


def _explain_gate(pod: PodFacts, cluster: ClusterFacts, leaders: Sequence[Leader]) -> tuple[str, str]:
    if pod.gate and pod.gate.reason:
        return write_condition(pod.gate), kubectl(pod.namespace, "describe", "pod", pod.name)
    if leaders and not _serves(leaders, pod.namespace):
        return _explain_scope(cluster, leaders)
    words = ("auth", "can-i", "patch", "pods", "--subresource=status", "--as", _user(cluster))
    return _explain_selector(pod.namespace, leaders) or (
        "the operator has not written it: it may lack permission to patch pods/status",
        kubectl(pod.namespace, *words),
    )


def _user(cluster: ClusterFacts) -> str:
    """Name the operator's ServiceAccount; as the chart calls it by default where its Deployment is not seen."""
    return next((each.user for each in cluster.deployments or ()), DEFAULT.user)


def _explain_selector(namespace: str, leaders: Sequence[Leader]) -> tuple[str, str] | None:
    """Return that the operator may not see Pods by its own selector, where it has one, and how to compare."""
    selector = next((each.selector for each in leaders if each.selector), "")
    said = f"the operator watches only Pods with {selector} (its podSelector)"
    return (said, kubectl(namespace, "get", "pods", "--show-labels")) if selector else None


def unregistered_pods(cluster: ClusterFacts, operators: OperatorFacts) -> frozenset[str]:
    """Return the UIDs of ready Pods without keys."""
    return frozenset(pod.uid for _, pods in _lacking(cluster, operators) for pod in pods)


def _unregistered(cluster: ClusterFacts, operators: OperatorFacts, among: frozenset[str] | None) -> Iterator[Finding]:
    for service, pods in _lacking(cluster, operators):
        if lacking := [pod for pod in pods if among is None or pod.uid in among]:
            names = list_names(pod.name for pod in lacking)
            why, remedy = _reason(service, lacking, cluster, operators)
            problem = f"{count(len(lacking), 'ready Pod')} not registered ({names}): {why}"
            yield Finding(Code.NOT_REGISTERED, subject_of(service), problem, remedy)


def _lacking(cluster: ClusterFacts, operators: OperatorFacts) -> Iterator[tuple[ServiceFacts, list[PodFacts]]]:
    """Return the ready Pods of each GrpcService that have no keys in this etcd and ought to."""
    keys = {(each.uid, service) for each in operators.owned if each.keys for service in each.services}
    for service in cluster.services:
        is_here = bool(operators.names_of(cluster) & {*service.registries})
        if service.enable and is_here and service.condition("Accepted").status != "False":
            yield service, [pod for pod in _wanted(service, cluster) if (pod.uid, service.reference) not in keys]


def _wanted(service: ServiceFacts, cluster: ClusterFacts) -> list[PodFacts]:
    pods = cluster.selected(service)
    return [
        pod
        for pod in pods
        if pod.is_serving(publish_not_ready=service.publish_not_ready)
        and find_port(pod.ports, service.port) is not None
    ]


def _reason(
    service: ServiceFacts, lacking: Sequence[PodFacts], cluster: ClusterFacts, operators: OperatorFacts
) -> tuple[str, str]:
    """Return why Pods are not registered, as far as anything says so, and what to do."""
    if not operators.leaders_of(cluster):
        return "the registry has no leader", start_operator(cluster)
    describe = kubectl(service.namespace, "describe", "grpcservice", service.name)
    programmed = service.condition("Programmed")
    if programmed.status in {"False", "Unknown"}:
        code = CODES.get(programmed.reason)
        return (f"{programmed.reason}, see {code.value}" if code else write_condition(programmed)), describe
    gates = [pod.gate for pod in lacking if pod.gate and pod.gate.message]
    if gates:
        return write_condition(gates[0]), kubectl(service.namespace, "describe", "pod", lacking[0].name)
    silence = "no reason is recorded; a working operator registers a Pod within a second"
    return _explain_selector(service.namespace, operators.leaders_of(cluster)) or (silence, OPERATOR_LOG)


def _left_over(cluster: ClusterFacts, operators: OperatorFacts) -> Iterator[Finding]:
    """Report Pods with keys that ought to have none."""
    ours = operators.clusters_of(cluster)
    pods = {pod.uid: pod for pod in cluster.pods}
    services = {service.reference: service for service in cluster.services}
    for owned in operators.owned:
        known = [services[each] for each in owned.services if each in services]
        is_ours = owned.cluster in ours and known and cluster.may_read("pods", owned.namespace)
        if is_ours and owned.keys:
            yield from _judge_keys(owned, pods.get(owned.uid), known, cluster, operators)


def _judge_keys(
    owned: Owned,
    pod: PodFacts | None,
    services: Sequence[ServiceFacts],
    cluster: ClusterFacts,
    operators: OperatorFacts,
) -> Iterator[Finding]:
    remedy = OPERATOR_LOG if operators.leaders_of(cluster) else start_operator(cluster)
    subject, keys = f"Pod {owned.namespace}/{owned.pod}", list_names(map(escape_bytes, owned.keys))
    if pod is None:
        yield Finding(Code.REGISTERED_GONE, subject, f"it is gone, but its keys still exist: {keys}", remedy)
    elif not _may_have_keys(pod, services):
        state = "terminating" if pod.terminating else "not ready"
        yield Finding(Code.REGISTERED_UNREADY, subject, f"it is {state}, but its keys still exist: {keys}", remedy)


def _may_have_keys(pod: PodFacts, services: Iterable[ServiceFacts]) -> bool:
    return any(
        pod.is_serving(publish_not_ready=each.publish_not_ready) or (pod.terminating and each.drains)
        for each in services
    )


def _left_behind(cluster: ClusterFacts, operators: OperatorFacts) -> Iterator[Finding]:
    """Report keys of the same GrpcServices under another cluster id than that of who leads, for which nobody leads."""
    led = {each.cluster for each in operators.leaders}
    looked_at = {each.reference for each in cluster.services}
    behind = [each for each in operators.owned if each.keys and looked_at.intersection(each.services)]
    for gone in sorted({each.cluster for each in behind} - led) if operators.leaders_of(cluster) else ():
        pods = [each for each in behind if each.cluster == gone]
        what = f"{count(len(pods), 'Pod')} registered under this id, which has no leader"
        remedy = (
            "Wait until their leases expire (leaseTtlSeconds); or at once, if that cluster is gone for good: "
            f"grpc-etcd-operator cleanup --cluster-id {quote_argument(gone)} with the flags of `run`."
        )
        problem = f"{what}: {list_names(f'{each.namespace}/{each.pod}' for each in pods)}"
        yield Finding(Code.LEFT_BEHIND, f"cluster id {gone}", problem, remedy)
