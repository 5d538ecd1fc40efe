"""What is wrong with manifests of GrpcServices before they are applied. Pure.

Fields are checked against the CRD's schema, which the package has a copy of, and its rules; selector and port against
the Pods of the namespace and the Pod templates of the same files.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from grpc_etcd.inspect.cluster import PodFacts, ServiceFacts, TargetFacts, parse_service, parse_template, read_selector
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding, kubectl
from grpc_etcd.inspect.schema import Mistake, find_mistakes
from grpc_etcd.inspect.service_checks import check_spec
from grpc_etcd.inspect.targets import check_target, parse_target, resolve

GROUP = "grpc-etcd.dev/"
DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABEL_VALUE = "([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
# What the API server asks of every object; a schema of a CRD has nothing of it.
METADATA: Mapping[str, Any] = {
    "properties": {
        "name": {"type": "string", "maxLength": 253, "pattern": rf"^{DNS_LABEL}(\.{DNS_LABEL})*$"},
        "namespace": {"type": "string", "maxLength": 63, "pattern": f"^{DNS_LABEL}$"},
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "string", "maxLength": 63, "pattern": f"^{LABEL_VALUE}$"},
        },
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": {"description": "anything"},
}


class Manifest(NamedTuple):
    """One document of a file."""

    file: str
    item: Mapping[str, Any]


def is_grpc_service(item: Mapping[str, Any]) -> bool:
    """Return whether a document is a GrpcService, of whatever version."""
    return item.get("kind") == "GrpcService" and str(item.get("apiVersion")).startswith(GROUP)


def flatten(file: str, documents: Iterable[Any]) -> Iterator[Manifest]:
    """Return the objects of a file, also those in lists."""
    for document in documents:
        if isinstance(document, Mapping) and isinstance(items := document.get("items"), list):
            yield from flatten(file, items)
        elif isinstance(document, Mapping):
            yield Manifest(file, document)


def find_manifest_faults(  # noqa: PLR0913, PLR0917  the files, and all that they are compared with
    manifests: Sequence[Manifest],
    schema: Mapping[str, Any],
    namespace: str,
    pods: Sequence[PodFacts] | None,
    services: Iterable[ServiceFacts] = (),
    targets: Collection[TargetFacts] | None = None,
) -> Iterator[Finding]:
    """Report what is wrong; `namespace` is that of manifests without one. No `pods`: the namespace was not read.

    Then templates of the same files are judged by themselves, and a selector without any is not. The same holds for
    `targets`: Services of the files come first.
    """
    own = [each.item for each in manifests if each.item.get("kind") == "Service"]
    known_targets = [*filter(None, (parse_target(each, namespace) for each in own)), *(targets or ())]
    templates = [pod for each in manifests if (pod := parse_template(each.item, namespace))]
    known = tuple(services)
    for manifest in manifests:
        if is_grpc_service(manifest.item):
            service = parse_service(manifest.item)
            service = resolve(replace(service, namespace=service.namespace or namespace), known_targets)
            yield from _check(manifest, schema, service, (pods, templates), known)
            if targets is not None and not service.is_resolved:
                subject = _subject(manifest)
                yield from (replace(each, subject=subject) for each in check_target(service, known_targets))


def _check(
    manifest: Manifest,
    schema: Mapping[str, Any],
    service: ServiceFacts,
    pods: tuple[Sequence[PodFacts] | None, Sequence[PodFacts]],
    services: Sequence[ServiceFacts],
) -> Iterator[Finding]:
    subject = _subject(manifest)
    unnamed = [] if _name(manifest.item) else [Mistake("metadata.name", "it is required and missing")]
    metadata = manifest.item.get("metadata")
    mistakes = [*unnamed, *find_mistakes(schema, manifest.item), *find_mistakes(METADATA, metadata, "metadata")]
    yield from (_finding(manifest.file, subject, each) for each in mistakes)
    here = [pod for pod in (*(pods[0] or ()), *pods[1]) if pod.namespace == service.namespace]
    is_selecting = any(read_selector(service.selector))
    if is_selecting and (pods[0] is not None or here):
        found = check_spec(
            service, here, lambda spec: f"In {_find_place(manifest, service, spec)}: {_write_change(spec)}"
        )
        yield from (replace(each, subject=subject) for each in found)
    yield from _names(subject, manifest.file, service, services)


def _subject(manifest: Manifest) -> str:
    return f"{manifest.file}: GrpcService {_name(manifest.item)}"


def _name(item: Mapping[str, Any]) -> str:
    metadata = item.get("metadata")
    return str(metadata.get("name") or "") if isinstance(metadata, Mapping) else ""


def _finding(file: str, subject: str, mistake: Mistake) -> Finding:
    code = Code.UNKNOWN_FIELD if mistake.is_unknown else Code.BAD_FIELD
    meant = f"; did you mean {mistake.near}?" if mistake.near else ""
    field = re.sub(r"\[[0-9]+\]", "", mistake.path).rpartition(".")[0]
    explain = kubectl("", "explain", f"grpcservice.{field}".rstrip("."))
    remedy = f"In {file}: write {mistake.near} for {mistake.path.rpartition('.')[2]}" if mistake.near else explain
    return Finding(code, subject, f"{mistake.path}: {mistake.problem}{meant}", remedy)


def _find_place(manifest: Manifest, service: ServiceFacts, spec: Mapping[str, Any]) -> str:
    """Name where fields of a spec are to be changed: a selector may be that of a Service."""
    return f"the Service {service.service_ref}" if "selector" in spec and service.service_ref else manifest.file


def _write_change(spec: Mapping[str, Any], path: str = "spec") -> str:
    """Write fields that are to be changed; None: to be removed."""
    parts = []
    for name, value in spec.items():
        if isinstance(value, Mapping):
            parts.append(_write_change(value, f"{path}.{name}"))
        else:
            parts.append(f"remove {path}.{name}" if value is None else f"set {path}.{name} to {value}")
    return ", ".join(parts)


def _names(subject: str, file: str, service: ServiceFacts, others: Iterable[ServiceFacts]) -> Iterator[Finding]:
    for other in others:
        if other.namespace != service.namespace and _overlap(service, other):
            yield Finding(
                Code.NAME_IN_USE,
                subject,
                f"the name {service.registry_name} is already that of the GrpcService {other.reference}",
                f"In {file}: set spec.name to {service.namespace}-{service.registry_name}",
            )


def _overlap(one: ServiceFacts, other: ServiceFacts) -> bool:
    """Return whether both would write under the same prefixes."""
    is_same = (one.registry_name, one.prefix) == (other.registry_name, other.prefix)
    return is_same and bool({*one.registries} & {*other.registries}) and bool({*one.layouts} & {*other.layouts})
