"""What a GrpcService asks for: its spec parsed once, or what is wrong with it in words that its owner can act on.

This is one of the three files that read Kubernetes objects (pods.py and targets.py are the others). The CRD's schema
refuses most mistakes already; this parser repeats the bounds, since a cluster may hold objects that an older schema let
in. What a GrpcService takes of a Service is not known here: until references.py has added it nothing of it is obeyed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.layouts.jupiter_v2 import JupiterV2
from grpc_etcd.registry.endpoint import name_fault, scheme_fault
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.policy import parse_policy, write_policy
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.selector import ANYBODY, Selector, parse_selector

MAX_WEIGHT = 10_000
MAX_PORT = 65_535
# Characters of the keys of maps in a spec, as in the CRD: those of a label, of spec.group, and of a host with its port.
MAX_METADATA_KEY, MAX_GROUP, MAX_ADDRESS = 317, 253, 259
SHOWN_KEY = 40  # characters of a key that a message quotes; arbitrary
DEFAULT_REGISTRY = "default"
DEFAULT_PREFIX = "jupiter"
SERVICE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
NO_PREFIXES: Mapping[str, str | None] = MappingProxyType({})
NO_ETCDS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A weighted route of one method: by group, by address, or both."""

    id: str
    method: str
    groups: Mapping[str, int]
    addresses: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A GrpcService's wishes, complete with defaults. `layouts` and `prefixes` are by registry, as defaults differ.

    `prefix` is the owner's own word, empty where there is none. With a `service_ref` the selector is that of the
    Service, and `target_port` the port that it leads to.
    """

    registry_name: str
    selector: Selector
    service_ref: str = ""
    target_port: str | int | None = None
    prefix: str = ""
    port: str | int | None = None
    scheme: str = "grpc"
    weight: int = 100
    metadata: Mapping[str, str]
    metadata_from_labels: tuple[str, ...] = ()
    group: str = ""
    region: str = ""
    zone: str = ""
    deployment: str = ""
    app_id: str = ""
    enable: bool = True
    publish_not_ready: bool = False
    layouts: Mapping[str, tuple[Layout, ...]]
    prefixes: Mapping[str, str]
    registries: tuple[str, ...] = (DEFAULT_REGISTRY,)
    drain_by_disabling: bool = False
    metrics_port: str | int | None = None
    policy: bytes = b""
    routes: tuple[Route, ...] = ()

    @property
    def wanted_port(self) -> str | int | None:
        """Return the container port: its own word, else that of the Service that it names."""
        return self.target_port if self.port is None else self.port


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcService:
    """One GrpcService object. `spec` is None exactly when `faults` says why, of which `reason` is the kind.

    `draft` is such a spec as far as it can be read: nothing of it is obeyed, but it says whom it would select.
    """

    uid: str
    namespace: str
    name: str
    created: str = ""
    generation: int = 0
    resource_version: str = ""
    spec: Spec | None
    draft: Spec | None = None
    faults: tuple[str, ...] = ()
    reason: Reason = Reason.INVALID_SPEC
    status: Mapping[str, Any]

    @property
    def asked(self) -> Spec | None:
        """Return what its owner asks for, be it at fault or not; None where that says of no Pod whether it is meant."""
        return self.spec or self.draft

    @property
    def claimed(self) -> Spec | None:
        """Return the spec by which it claims keys: a valid one, whether or not its Service can be used."""
        return self.spec or (None if self.reason is Reason.INVALID_SPEC else self.draft)

    @property
    def service_ref(self) -> str:
        """Return the name of the Service that it refers to, be its spec at fault or not; empty where there is none."""
        return self.asked.service_ref if self.asked else ""

    @property
    def age_order(self) -> tuple[str, str]:
        """Order GrpcServices from the oldest on; ties are broken by UID."""
        return self.created, self.uid

    @property
    def reference(self) -> str:
        """Name the object as owner records and messages do."""
        return f"{self.namespace}/{self.name}"

    @property
    def was_accepted(self) -> bool:
        """Return whether the status says that this very spec was accepted, by whatever settings were in force then."""
        conditions = self.status.get("conditions")
        return any(
            isinstance(each, Mapping)
            and (each.get("type"), each.get("status")) == ("Accepted", "True")
            and each.get("observedGeneration") == self.generation
            for each in (conditions if isinstance(conditions, list) else ())
        )

    def asks_the_same_as(self, other: "GrpcService") -> bool:
        """Return whether both lead to the same records and the same status except for its own bookkeeping."""
        ours, theirs = ((each.spec, each.draft, each.faults, each.generation) for each in (self, other))
        return ours == theirs

    def with_target(self, selector: Selector, port: str | int | None) -> "GrpcService":
        """Return it with what it takes of the Service that it names."""
        spec = None if self.claimed is None else replace(self.claimed, selector=selector, target_port=port)
        return replace(self, spec=spec, draft=None, faults=(), reason=Reason.INVALID_SPEC)

    def drafted_for(self, selector: Selector) -> "GrpcService":
        """Return it, if its spec is at fault, as one that would select the Pods of the Service that it names."""
        return self if self.draft is None else replace(self, draft=replace(self.draft, selector=selector))

    def without_target(self, reason: Reason, message: str) -> "GrpcService":
        """Return it as one whose Service cannot be used: nothing of it is obeyed, and it may mean any Pod."""
        draft = None if self.claimed is None else replace(self.claimed, selector=ANYBODY, target_port=None)
        return replace(self, spec=None, draft=draft, faults=(message,), reason=reason)


def parse_service(
    raw: Mapping[str, Any],
    prefixes: Mapping[str, str | None] = NO_PREFIXES,
    etcds: Mapping[str, str] = NO_ETCDS,
) -> GrpcService:
    """Parse a GrpcService object; `prefixes` are the operator's by registry, None leaves each layout its own.

    `etcds` has for each registry the first name of the same etcd, which is the one that counts.
    """
    metadata = raw["metadata"]
    faults: list[str] = []
    try:
        spec = _parse_spec(raw.get("spec") or {}, metadata["name"], prefixes, etcds, faults)
    except (TypeError, ValueError, AttributeError) as error:
        spec = None
        faults.append(f"spec cannot be read: {error}")
    service = GrpcService(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        created=metadata.get("creationTimestamp") or "",
        generation=metadata.get("generation") or 0,
        resource_version=metadata.get("resourceVersion") or "",
        spec=None if faults else spec,
        draft=spec if faults and _names_pods(raw.get("spec")) else None,
        faults=tuple(faults),
        status=raw.get("status") or {},
    )
    has_target = service.spec is None or not service.spec.service_ref
    return service if has_target else service.without_target(Reason.PENDING, "its Service is not known yet")


def _parse_spec(
    raw: Mapping[str, Any],
    object_name: str,
    defaults: Mapping[str, str | None],
    etcds: Mapping[str, str],
    faults: list[str],
) -> Spec:
    name = str(raw.get("name") or object_name)
    registries = tuple(dict.fromkeys(etcds.get(each, each) for each in raw.get("registries") or (DEFAULT_REGISTRY,)))
    prefixes = {registry: raw.get("prefix") or defaults.get(registry) for registry in registries}
    layouts = dict.fromkeys(raw.get("layouts") or ["jupiter"])
    faults += [
        f"spec.layouts has an unknown layout {x!r}; the layouts are {', '.join(LAYOUT_NAMES)}"
        for x in layouts
        if x not in LAYOUT_NAMES
    ]
    drain = (raw.get("drain") or {}).get("mode", "Delete")
    scheme = str(raw.get("scheme", "grpc"))
    selector, service_ref = _parse_selection(raw, faults)
    faults += [fault for fault in (name_fault(name), scheme_fault(scheme)) if fault]
    if drain not in ("Delete", "Disable"):
        faults.append(f"spec.drain.mode is {drain!r}; it is Delete or Disable")
    return Spec(
        registry_name=name,
        selector=selector,
        service_ref=service_ref,
        prefix=raw.get("prefix") or "",
        port=_parse_port(raw.get("port"), "spec.port", faults),
        scheme=scheme,
        weight=_bounded(raw.get("weight", 100), MAX_WEIGHT, "spec.weight", faults),
        metadata=MappingProxyType(_parse_metadata(raw.get("metadata") or {}, faults)),
        metadata_from_labels=tuple(raw.get("metadataFromLabels") or ()),
        group=str(raw.get("group", "")),
        region=str(raw.get("region", "")),
        zone=str(raw.get("zone", "")),
        deployment=str(raw.get("deployment", "")),
        app_id=str(raw.get("appId", "")),
        enable=bool(raw.get("enable", True)),
        publish_not_ready=bool(raw.get("publishNotReady", False)),
        layouts={registry: _make_layouts(layouts, prefix, scheme) for registry, prefix in prefixes.items()},
        prefixes={registry: prefix or DEFAULT_PREFIX for registry, prefix in prefixes.items()},
        registries=registries,
        drain_by_disabling=drain == "Disable",
        metrics_port=_parse_port(raw.get("metricsPort"), "spec.metricsPort", faults),
        policy=_parse_policy(raw.get("policy"), faults),
        routes=tuple(_parse_route(entry, faults) for entry in raw.get("routes") or ()),
    )


def _parse_selection(raw: Mapping[str, Any], faults: list[str]) -> tuple[Selector, str]:
    """Read who is selected: a selector, or the name of the Service that has one."""
    if raw.get("serviceRef") is None:
        return parse_selector(raw.get("selector") or {}, faults), ""
    name = raw["serviceRef"].get("name")
    if raw.get("selector") is not None:
        faults.append("spec has both selector and serviceRef; give exactly one of them")
    if not (isinstance(name, str) and SERVICE_NAME.fullmatch(name)):
        faults.append(f"spec.serviceRef.name is {str(name)[:SHOWN_KEY]!r}, which is no name of a Service")
    return ANYBODY, str(name)


def _names_pods(spec: Any) -> bool:
    """Return whether a spec's selector, or its Service's name, is without fault, whatever else is wrong."""
    faults: list[str] = []
    try:
        _parse_selection(spec, faults)
    except (TypeError, ValueError, AttributeError):
        return False
    return not faults


def _bounded(value: Any, largest: int, field: str, faults: list[str]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        faults.append(f"{field} is {value!r}; it must be a whole number from 0 to {largest}")
        return 0
    return value


def _parse_metadata(raw: Mapping[str, Any], faults: list[str]) -> dict[str, str]:
    _check_keys(raw, MAX_METADATA_KEY, "spec.metadata", faults)
    return {str(key): str(value) for key, value in raw.items()}


def _check_keys(found: Iterable[str], longest: int, field: str, faults: list[str]) -> None:
    """Report keys that are too long: they are written for each Pod and layout, and an object has room for a megabyte.

    CRDs of older releases do not bound them.
    """
    faults += [
        f"{field}: the key {key[:SHOWN_KEY]!r}... has {len(key)} characters, of {longest} at most"
        for key in found
        if len(key) > longest
    ]


def _parse_port(value: Any, field: str, faults: list[str]) -> str | int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and not value.isdigit():
        return value
    number = int(value)
    if not 0 < number <= MAX_PORT:
        faults.append(f"{field} is {value!r}; a port is a container port's name or a number from 1 to {MAX_PORT}")
    return number


def _make_layouts(names: Iterable[str], prefix: str | None, scheme: str) -> tuple[Layout, ...]:
    made = (make_layout(name, prefix) for name in names if name in LAYOUT_NAMES)
    # A jupiter-v2 prefix holds the scheme: what is followed must be what is written under.
    return tuple(replace(each, scheme=scheme) if isinstance(each, JupiterV2) else each for each in made)


def _parse_policy(raw: Mapping[str, Any] | None, faults: list[str]) -> bytes:
    if not raw:
        return b""
    _check_keys(raw.get("matchMetadata") or (), MAX_METADATA_KEY, "spec.policy.matchMetadata", faults)
    policy, policy_faults = parse_policy(raw)
    faults += [f"spec.policy.{fault}" for fault in policy_faults]
    return write_policy(policy)


def _parse_route(raw: Mapping[str, Any], faults: list[str]) -> Route:
    route = Route(
        id=str(raw.get("id", "")),
        method=str(raw.get("method", "")),
        groups=MappingProxyType(dict(raw.get("groups") or {})),
        addresses=MappingProxyType(dict(raw.get("addresses") or {})),
    )
    if fault := name_fault(route.id):
        faults.append(f"spec.routes: an id is invalid: {fault}")
    if not route.method.startswith("/"):
        faults.append(f"spec.routes: the method {route.method!r} is not of the form /package.Service/Method")
    _check_keys(route.groups, MAX_GROUP, f"spec.routes: groups of route {route.id!r}", faults)
    _check_keys(route.addresses, MAX_ADDRESS, f"spec.routes: addresses of route {route.id!r}", faults)
    for weight in (*route.groups.values(), *route.addresses.values()):
        _bounded(weight, MAX_WEIGHT, f"spec.routes: a weight of route {route.id!r}", faults)
    return route
