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
from grpc_etcd.inspect.generation import API_VERSION, KIND
from grpc_etcd.inspect.schema import DNS_LABEL, LABEL_VALUE, Mistake, find_mistakes
from grpc_etcd.inspect.service_checks import Neighbours, check_spec
from grpc_etcd.inspect.targets import check_target, explain_unseen, is_known, parse_target, resolve
from grpc_etcd.inspect.template_checks import check_gates, check_pauses, is_gated

GROUP = "grpc-etcd.dev/"
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
    """Return whether a document is a GrpcService, of whatever version and however that is spelled."""
    is_ours = str(item.get("apiVersion")).startswith(GROUP)
    return is_ours and str(item.get("kind")).casefold() in {KIND.casefold(), f"{KIND}s".casefold()}


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
    own = [(each, parse_target(each.item, namespace)) for each in manifests if each.item.get("kind") == "Service"]
    known_targets = [*(target._replace(file=each.file) for each, target in own if target), *(targets or ())]
    templates = [(each, pod) for each in manifests if (pod := parse_template(each.item, namespace))]
    here = _resolve_all(manifests, namespace, known_targets)
    references = {each.reference for _, each in here}
    others = [each for each in services if each.reference not in references]
    beside = Neighbours(
        [*(pods or ()), *(pod for _, pod in templates)], [*others, *(x for _, x in here)], known_targets
    )
    for number, (manifest, service) in enumerate(here):
        subject = _subject(manifest)
        yield from _check_fields(manifest, schema, subject)
        is_seen = pods is not None or any(pod.namespace == service.namespace for _, pod in templates)
        found = [
            *(_check_selection(manifest, service, beside) if is_seen else ()),
            *_check_reference(service, known_targets, is_read=targets is not None),
        ]
        yield from (replace(each, subject=subject) for each in found)
        yield from _names(subject, manifest.file, service, (*others, *(each for _, each in here[:number])))
    yield from _check_templates(templates, [service for _, service in here])


def _resolve_all(
    manifests: Iterable[Manifest], namespace: str, targets: Collection[TargetFacts]
) -> list[tuple[Manifest, ServiceFacts]]:
    """Return the GrpcServices of the files, each with what it takes of its Service."""
    found = [(each, parse_service(each.item)) for each in manifests if is_grpc_service(each.item)]
    return [(each, resolve(replace(one, namespace=one.namespace or namespace), targets)) for each, one in found]


def _check_fields(manifest: Manifest, schema: Mapping[str, Any], subject: str) -> Iterator[Finding]:
    unnamed = [] if _name(manifest.item) else [Mistake("metadata.name", "it is required and missing")]
    metadata = manifest.item.get("metadata")
    mistakes = [
        *_check_type(manifest.item),
        *unnamed,
        *find_mistakes(schema, manifest.item),
        *find_mistakes(METADATA, metadata, "metadata"),
    ]
    yield from (_finding(manifest.file, subject, each) for each in mistakes)


def _check_type(item: Mapping[str, Any]) -> Iterator[Mistake]:
    """Report a version or a kind that no API server serves; the schema is that of the one version which there is."""
    for field, known in (("apiVersion", API_VERSION), ("kind", KIND)):
        if (given := item.get(field)) != known:
            yield Mistake(field, f"there is no {given}", near=known, wrong=str(given))


def _check_selection(manifest: Manifest, service: ServiceFacts, beside: Neighbours) -> Iterator[Finding]:
    if any(read_selector(service.selector)):
        yield from check_spec(service, beside, lambda spec: _write_fix(manifest, service, spec))


def _check_reference(service: ServiceFacts, targets: Collection[TargetFacts], *, is_read: bool) -> Iterator[Finding]:
    """Report what is wrong with the Service that is named; `is_read`: those of the cluster are among `targets`."""
    if service.is_resolved:
        return
    if is_read or is_known(service, targets):
        yield from check_target(service, targets)
    elif service.enable:
        yield explain_unseen(service, targets)


def _check_templates(
    templates: Iterable[tuple[Manifest, PodFacts]], services: Sequence[ServiceFacts]
) -> Iterator[Finding]:
    """Report what is wrong with Pod templates: with their gate in any case, else where a GrpcService selects them."""
    for manifest, pod in templates:
        subject, place = f"{manifest.file}: {pod.name}", f"In {manifest.file}"
        yield from check_gates(subject, [pod], place)
        if is_gated(pod) or any(each.selects(pod) for each in services):
            yield from check_pauses(subject, [pod], place)


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
    where = "" if mistake.is_unknown else f" ({mistake.path})"
    remedy = f"In {file}: write {mistake.near} for {mistake.wrong}{where}" if mistake.near else explain
    return Finding(code, subject, f"{mistake.path}: {mistake.problem}{meant}", remedy)


def _write_fix(manifest: Manifest, service: ServiceFacts, spec: Mapping[str, Any]) -> str:
    """Write where fields of a spec are to be changed, and how: a selector may be that of a Service, of labels alone."""
    if "selector" in spec and service.service_ref:
        change = _write_change({"selector": spec["selector"]["matchLabels"]})
        return f"In the Service {service.service_ref}: {change}"
    return f"In {manifest.file}: {_write_change(spec)}"


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
