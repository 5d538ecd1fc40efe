"""What GrpcServices take of Services (`spec.serviceRef`), and what is wrong with these. Pure.

A test compares what is taken with what the operator takes: tests/unit/inspect/test_same_as_operator.py.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from grpc_etcd.inspect.cluster import ServiceFacts, TargetFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding, kubectl
from grpc_etcd.inspect.generation import choose_target, read_service
from grpc_etcd.inspect.nearness import near_names


def parse_target(item: Mapping[str, Any], namespace: str = "") -> TargetFacts | None:
    """Read a Service; `namespace` is that of one which names none. None: it has no name."""
    service = read_service(item, namespace)
    if service is None:
        return None
    port = choose_target(service.ports)
    has_many = port is None and bool(service.ports)
    ports = ", ".join(str(each.wanted) for each in service.ports) if has_many else ""
    return TargetFacts(service.namespace, service.name, service.selector, port, ports, tuple(_served(item)))


def _served(item: Mapping[str, Any]) -> Iterator[tuple[int, str | int]]:
    """Yield the ports of a Service, which callers of the Service dial, and what each leads to."""
    spec = item.get("spec")
    ports = spec.get("ports") if isinstance(spec, Mapping) else None
    for each in ports if isinstance(ports, list) else ():
        port = each.get("port") if isinstance(each, Mapping) else None
        target = each.get("targetPort") or port if isinstance(each, Mapping) else None
        if isinstance(port, int) and isinstance(target, int | str):
            yield port, target


def resolve(service: ServiceFacts, targets: Collection[TargetFacts]) -> ServiceFacts:
    """Return a GrpcService with what it takes of its Service; as it is where that is nothing."""
    target = _find(service, targets)
    if target is None or not target.selector or (target.unclear_ports and service.port is None):
        return service
    port = target.port if service.port is None else service.port
    return replace(service, selector={"matchLabels": dict(target.selector)}, port=port)


def check_target(service: ServiceFacts, targets: Collection[TargetFacts]) -> Iterator[Finding]:
    """Report why nothing can be taken of the Service that a GrpcService names. One that is disabled needs none."""
    if not service.enable:
        return
    subject, name, where = f"GrpcService {service.reference}", service.service_ref, service.namespace
    target = _find(service, targets)
    if target is None:
        near = near_names(name, [each.name for each in targets if each.namespace == where])
        closest = f"; the closest is {', '.join(near)}" if near else ""
        problem = f"there is no Service {name} in the namespace {where}{closest}"
        yield Finding(Code.SERVICE_NOT_FOUND, subject, problem, kubectl(where, "get", "services"))
    elif not target.selector:
        problem = f"the Service {name} has no selector, or leads out of the cluster: give spec.selector instead"
        yield Finding(Code.SERVICE_UNUSABLE, subject, problem, _change(target, "give it a selector, or name another"))
    elif target.unclear_ports and service.port is None:
        problem = (
            f"no port of the Service {name} is known to be the one of gRPC ({target.unclear_ports}): set spec.port"
        )
        yield Finding(Code.NO_PORT, subject, problem, _change(target, "name the port of gRPC grpc, or set spec.port"))


def explain_unseen(service: ServiceFacts, targets: Collection[TargetFacts]) -> Finding:
    """Report that a Service could not be looked up, as there is no cluster, and it is in none of the files."""
    name, where = service.service_ref, service.namespace
    near = near_names(name, [each.name for each in targets if each.namespace == where], is_near=True)
    closest = f"; the closest there is {near[0]}" if near else ""
    problem = f"the Service {name} is in none of the files{closest}: selector and port were not checked"
    look = kubectl(where, "get", "service", name)
    remedy = f"Pass the Service's file as well (-f); if it is in a cluster only: {look}"
    return Finding(Code.SERVICE_UNSEEN, f"GrpcService {service.reference}", problem, remedy)


def is_known(service: ServiceFacts, targets: Collection[TargetFacts]) -> bool:
    """Return whether the Service that a GrpcService names is among some."""
    return _find(service, targets) is not None


def _change(target: TargetFacts, what: str) -> str:
    """Write what to change where the Service is: in its file, or in the cluster."""
    if target.file:
        return f"In {target.file}: change the Service {target.name}: {what}"
    return kubectl(target.namespace, "get", "service", target.name, "-o", "yaml")


def _find(service: ServiceFacts, targets: Collection[TargetFacts]) -> TargetFacts | None:
    wanted = service.namespace, service.service_ref
    return next((each for each in targets if (each.namespace, each.name) == wanted), None)
