"""What is wrong with GrpcServices, from what Kubernetes shows of them: selectors, ports, conditions. Pure.

What the operator says in conditions is taken over, with a code and a command. Selectors and ports are looked at here:
the nearest labels and names are known only to who sees the Pods, and a manifest has no conditions yet.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from grpc_etcd.inspect.cluster import (
    ClusterFacts,
    Condition,
    PodFacts,
    ServiceFacts,
    TargetFacts,
    find_port,
    matches,
    read_selector,
)
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.conditions import SEEN_IN_PODS, SEEN_IN_SERVICES, condition_findings
from grpc_etcd.inspect.findings import SHOW_OPERATORS, Finding, kubectl, patch_command
from grpc_etcd.inspect.generation import GRPC_NAME
from grpc_etcd.inspect.nearness import (
    common_labels,
    is_misspelling,
    near_labels,
    near_names,
    unmatched_labels,
    write_label,
)
from grpc_etcd.inspect.selector_changes import find_change
from grpc_etcd.inspect.targets import check_target
from grpc_etcd.inspect.template_checks import check_gates, check_pauses

UNSEEN_SECONDS = 30.0  # after which a change ought to have been seen. Arbitrary: it takes a fraction of a second
MOST_SHOWN = 3  # arbitrary: a line is read by people
Fix = Callable[[dict[str, Any]], str]  # writes how fields of a spec are changed


class Neighbours(NamedTuple):
    """What a GrpcService is compared with; `services` may have it itself."""

    pods: Sequence[PodFacts]
    services: Sequence[ServiceFacts] = ()
    targets: Sequence[TargetFacts] = ()

    def of(self, service: ServiceFacts) -> Self:
        """Return those of its namespace, without itself."""
        where = service.namespace
        others = [each for each in self.services if each.namespace == where and each.reference != service.reference]
        return self._replace(
            pods=[each for each in self.pods if each.namespace == where],
            services=others,
            targets=[each for each in self.targets if each.namespace == where],
        )


def find_service_faults(cluster: ClusterFacts) -> Iterator[Finding]:
    """Report what is wrong with the GrpcServices that were looked at."""
    for service in cluster.services:
        seen: frozenset[Code] = frozenset()
        if not service.is_resolved and cluster.may_read("services", service.namespace):
            yield from check_target(service, cluster.targets)
            seen = SEEN_IN_SERVICES
        elif service.is_resolved and cluster.may_read("pods", service.namespace):
            yield from check_pods(service, Neighbours(cluster.pods, cluster.known, cluster.targets))
            seen = SEEN_IN_PODS
        yield from condition_findings(service, seen)
        yield from _unseen(service)
        yield from _disabled(service)


def check_pods(service: ServiceFacts, beside: Neighbours) -> Iterator[Finding]:
    """Report whether a selector and a port lead to what was meant, and whether such Pods can become ready."""
    yield from check_spec(service, beside, lambda spec: _write_fix(service, spec))
    selected = [pod for pod in beside.pods if service.selects(pod)]
    yield from check_gates(subject_of(service), selected, "In the Pod template")
    yield from check_pauses(subject_of(service), selected, "In the Pod template")
    if service.enable and selected and not any(pod.ready or service.publish_not_ready for pod in selected):
        yield Finding(
            Code.NO_READY_PODS,
            subject_of(service),
            f"none of its {len(selected)} Pods is ready: {list_names(pod.name for pod in selected)}",
            kubectl(service.namespace, "describe", "pod", selected[0].name),
        )


def _write_fix(service: ServiceFacts, spec: dict[str, Any]) -> str:
    """Write the command that changes fields of a spec, or the selector of the Service that has it."""
    if "selector" in spec and service.service_ref:
        return kubectl(service.namespace, "edit", "service", service.service_ref)
    return patch_command(service.namespace, service.name, spec)


def check_spec(service: ServiceFacts, beside: Neighbours, fix: Fix) -> Iterator[Finding]:
    """Report what selector and port miss among the Pods of the namespace; `fix` writes the remedy."""
    here = beside.of(service)
    selected = [pod for pod in here.pods if service.selects(pod)]
    if selected:
        lasting = [pod for pod in selected if not (pod.terminating or pod.ended)]
        yield from _check_port(service, here._replace(pods=lasting), fix)
    elif service.enable:
        yield Finding(Code.NO_PODS, subject_of(service), *_explain_selector(service, here, fix))


def _explain_selector(service: ServiceFacts, beside: Neighbours, fix: Fix) -> tuple[str, str]:
    """Return why a selector finds nothing, and what would."""
    pods = beside.pods
    show = kubectl(service.namespace, "get", "pods", "--show-labels")
    if not pods:
        return f"there is no Pod in the namespace {service.namespace}", show
    wanted, _ = read_selector(service.selector)
    wrong = unmatched_labels(wanted, pods)
    if not wrong:
        return "no Pod meets all of its requirements at once, though each label is on some Pod", show
    key, value = next(iter(wrong.items()))
    near = near_labels(key, value, pods)
    problem = f"no Pod has the label {write_label(key, value)}"
    change = find_change(service, (key, value), near[0], pods, beside.services) if near else None
    if change is None:
        shown = ", ".join(dict.fromkeys((*(write_label(*each) for each in near), *common_labels(pods))))
        similar = "" if near else ", or a similar one"
        return f"{problem} yet{similar}; Pods there have {shown or 'no labels'}", show
    shown = ", ".join(write_label(*each) for each in near)
    return f"{problem}; the closest is {shown}", fix({"selector": {"matchLabels": change}})


def _check_port(service: ServiceFacts, beside: Neighbours, fix: Fix) -> Iterator[Finding]:
    pods = beside.pods
    lacking = [pod for pod in pods if find_port(pod.ports, service.port) is None]
    if lacking and len(lacking) == len(pods):
        yield Finding(Code.NO_PORT, subject_of(service), *_explain_port(service, pods, fix))
    elif lacking:
        yield Finding(
            Code.SOME_WITHOUT_PORT,
            subject_of(service),
            f"{len(lacking)} of {len(pods)} Pods have no port {service.port or 'grpc'!r}: "
            f"{list_names(pod.name for pod in lacking)}",
            kubectl(service.namespace, "get", "pod", lacking[0].name, "-o", "yaml"),
        )
    elif isinstance(service.port, int) and pods and not _is_declared(service.port, pods):
        yield _explain_undeclared(service, beside, fix)


def _explain_undeclared(service: ServiceFacts, beside: Neighbours, fix: Fix) -> Finding:
    """Report a number that no container declares; one at which a Service is called is hardly the container's."""
    known, choice = list_names(_write_ports(beside.pods)) or "none", choose_port(beside.pods)
    problem = f"no container declares the port {service.port}; they declare {known}"
    for target in beside.targets:
        meant = dict(target.served).get(int(service.port or 0), service.port)
        if meant != service.port and any(matches({"matchLabels": target.selector}, pod.labels) for pod in beside.pods):
            said = f"{service.port} is the port of the Service {target.name}, which leads to the container port {meant}"
            return Finding(Code.SERVICE_PORT, subject_of(service), f"{said}; {problem}", fix({"port": meant}))
    remedy = "No action is needed if the server listens there" + (f"; else: {fix({'port': choice})}" if choice else ".")
    return Finding(Code.UNDECLARED_PORT, subject_of(service), problem, remedy)


def _explain_port(service: ServiceFacts, pods: Sequence[PodFacts], fix: Fix) -> tuple[str, str]:
    shown = list_names(_write_ports(pods)) or "none"
    named = near_names(str(service.port or "grpc"), [port.name for pod in pods for port in pod.ports])
    choice = next((each for each in named if is_misspelling(str(service.port), each)), None) or choose_port(pods)
    what = f"has the port {service.port!r}" if service.port else "has a port that can be chosen"
    remedy = fix({"port": choice}) if choice else kubectl(service.namespace, "edit", "grpcservice", service.name)
    return f"none of its {len(pods)} Pods {what}; they have {shown}", remedy


def choose_port(pods: Iterable[PodFacts]) -> str | int | None:
    """Return the port that is known to be gRPC's, by its name if it has one: what a gRPC probe uses, or is named so.

    Of a port that is the only one and has no name it is taken. Another one may be that of metrics: None.
    """
    ports = list(dict.fromkeys(port for pod in pods for port in pod.ports))
    best = next((port for port in ports if port.is_probed), None)
    best = best or next((port for port in ports if port.name == "grpc"), None)
    best = best or next((port for port in ports if GRPC_NAME.fullmatch(port.name)), None)
    best = best or (ports[0] if len(ports) == 1 and not ports[0].name else None)
    return (best.name or best.number) if best else None


def _write_ports(pods: Iterable[PodFacts]) -> list[str]:
    ports = dict.fromkeys(port for pod in pods for port in pod.ports)
    return [f"{port.name or 'unnamed'} ({port.number})" for port in ports]


def _is_declared(number: int, pods: Iterable[PodFacts]) -> bool:
    return any(port.number == number for pod in pods for port in pod.ports)


def _unseen(service: ServiceFacts) -> Iterator[Finding]:
    if not service.is_seen and service.age_seconds > UNSEEN_SECONDS:
        seen = "has no status" if service.observed < 0 else f"has the status of generation {service.observed}"
        yield Finding(
            Code.NOT_SEEN,
            subject_of(service),
            f"it {seen}, though its generation {service.generation} is {service.age_seconds:.0f} s old",
            SHOW_OPERATORS,
        )


def _disabled(service: ServiceFacts) -> Iterator[Finding]:
    if not service.enable:
        enable = patch_command(service.namespace, service.name, {"enable": True})
        remedy = f"No action is needed if this is intended; else: {enable}"
        yield Finding(Code.DISABLED, subject_of(service), "spec.enable is false, so it has no endpoints", remedy)


def subject_of(service: ServiceFacts) -> str:
    """Name a GrpcService in a finding."""
    return f"GrpcService {service.reference}"


def count(number: int, noun: str) -> str:
    """Write of how many things something is said."""
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def list_names(names: Iterable[str]) -> str:
    """Write some names, the first of many."""
    found = list(names)
    more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return ", ".join(found[:MOST_SHOWN]) + more


def write_condition(condition: Condition) -> str:
    """Write what a condition says."""
    return f"{condition.reason}: {condition.message}" if condition.message else condition.reason
