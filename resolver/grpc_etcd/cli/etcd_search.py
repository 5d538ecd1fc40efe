"""Find out from Kubernetes where etcd is and what logs in to it, as far as the caller's permissions allow.

The operator's Deployment comes first, then the chart's ConfigMap for clients in the caller's namespace: whoever may
read little else may read that. The first of them counts whose Secrets can all be read. Nothing is written.
"""

import base64
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import yaml

from grpc_etcd.cli.operators_file import parse_operators_file
from grpc_etcd.etcd.dialing import PEM
from grpc_etcd.inspect.etcd_settings import (
    EtcdSettings,
    KeptIn,
    choose_operators,
    explain_denial,
    parse_client,
    parse_operator,
    parse_registry,
)
from grpc_etcd.inspect.findings import kubectl
from grpc_etcd.inspect.kubernetes import CORE, Kubernetes, KubernetesError, is_charts, list_operators, path_of

USUAL_NAMESPACE = "grpc-etcd"  # the one that the pages install the operator in
OF_A_CHART = "helm.sh/chart"
GIVE_ENDPOINTS = "Or give --endpoints (GRPC_ETCD_ENDPOINTS), if this machine reaches etcd by itself."
Object = Mapping[str, Any]


class UnreachedError(Exception):
    """Etcd is not reached through Kubernetes; `is_visible` says whether at least something says where it is."""

    def __init__(self, problem: str, remedy: str, *, is_visible: bool = True) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.is_visible = problem, remedy, is_visible


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which etcd is meant, and which settings of it are given already."""

    namespace: str
    operator_namespace: str | None = None
    registry: str = "default"
    given: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FoundEtcd:
    """Where etcd is, and every setting that logs in to it, by name; files are their contents."""

    source: EtcdSettings
    settings: Mapping[str, str] = field(repr=False)
    deployment: tuple[str, str] | None  # namespace and name of an operator that reaches it


def find_etcd(kubernetes: Kubernetes, wanted: Wanted) -> FoundEtcd:
    """Return where etcd is; raises UnreachedError."""
    denials: list[str] = []
    failures: list[UnreachedError] = []
    operators = list(_read_operators(kubernetes, wanted, denials))
    deployment = (operators[0].namespace, operators[0].deployment) if operators else None
    for source in itertools.chain(operators, _read_clients(kubernetes, wanted, operators, denials)):
        needed = source.without(wanted.given)
        try:
            return FoundEtcd(needed, _read_settings(kubernetes, needed), deployment)
        except UnreachedError as error:
            failures.append(error)
    if not failures:
        raise _nothing_found(wanted, denials)
    raise UnreachedError("; ".join(dict.fromkeys(each.problem for each in failures)), failures[0].remedy)


def _nothing_found(wanted: Wanted, denials: list[str]) -> UnreachedError:
    where = f"namespace {wanted.operator_namespace}" if wanted.operator_namespace else "any namespace that may be read"
    problem = (
        f"neither a Deployment of the operator in {where} nor its ConfigMap for clients "
        f"in {wanted.namespace} says where etcd is"
    )
    explained = next((found for each in denials if (found := explain_denial(each))), None)
    if not explained:
        return UnreachedError(problem, f"--operator-namespace NAME. {GIVE_ENDPOINTS}", is_visible=False)
    return UnreachedError(f"{problem}: {explained[0]}", f"{explained[1]}. {GIVE_ENDPOINTS}", is_visible=False)


def _read_operators(kubernetes: Kubernetes, wanted: Wanted, denials: list[str]) -> Iterable[EtcdSettings]:
    """Return what the Deployments say that serve the namespace; several etcds are for the caller to choose from."""
    items = {_name(each): each for each in _list_operators(kubernetes, wanted, denials)}
    found = [each for item in items.values() if (each := parse_operator(item))]
    chosen = choose_operators(found, wanted.namespace)
    if len({each.endpoints for each in chosen}) > 1:
        names = ", ".join(f"{each.namespace}/{each.deployment}" for each in chosen)
        raise UnreachedError(f"several operators are there: {names}", "Choose one: --operator-namespace NAME")
    if wanted.registry == "default":
        return chosen
    return [_read_registry(kubernetes, each, items[each.subject], wanted.registry) for each in chosen]


def _name(item: Object) -> str:
    return f"Deployment {item['metadata'].get('namespace')}/{item['metadata'].get('name')}"


def _list_operators(kubernetes: Kubernetes, wanted: Wanted, denials: list[str]) -> list[Object]:
    def read(namespace: str) -> list[Object] | None:
        return _allowed(lambda: list_operators(kubernetes, namespace), denials)

    if wanted.operator_namespace:
        return read(wanted.operator_namespace) or []
    everywhere = read("")
    if everywhere is not None:
        return everywhere
    some = dict.fromkeys((USUAL_NAMESPACE, wanted.namespace))
    return [each for name in some for each in read(name) or ()]


def _read_registry(kubernetes: Kubernetes, operator: EtcdSettings, item: Object, registry: str) -> EtcdSettings:
    where = f"{operator.subject} has no registry {registry!r}"
    if operator.config is None:
        raise UnreachedError(f"{where}: it has no settings file", "Leave out --registry.")
    text = _read_kept(kubernetes, operator.namespace, operator.config)
    try:
        return parse_registry(operator, item, parse_operators_file(text, registry, operator.subject))
    except (ValueError, yaml.YAMLError) as error:
        raise UnreachedError(str(error), "Leave out --registry, or correct it.") from error


def _read_clients(
    kubernetes: Kubernetes, wanted: Wanted, operators: list[EtcdSettings], denials: list[str]
) -> Iterator[EtcdSettings]:
    """Return what the ConfigMaps for clients say, of the operator's namespace last: the caller's is for the caller."""
    names = (wanted.namespace, wanted.operator_namespace, *(each.namespace for each in operators))
    if wanted.registry != "default":
        return  # they have no other
    for namespace in dict.fromkeys(name for name in names if name):
        path = path_of(CORE, namespace, "configmaps")
        items = _allowed(lambda path=path: list(kubernetes.items(path, labelSelector=OF_A_CHART)), denials) or ()  # type: ignore[misc]  # mypy#15459
        yield from (found for each in items if is_charts(each) and (found := parse_client(each)))


def _allowed(read: Callable[[], list[Any]], denials: list[str]) -> list[Any] | None:
    """Return what is read; None where the caller may not."""
    try:
        return read()
    except KubernetesError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise UnreachedError(f"Kubernetes cannot be read: {error}", "kubectl version", is_visible=False) from error
        denials.append(str(error))
        return None


def _read_settings(kubernetes: Kubernetes, source: EtcdSettings) -> dict[str, str]:
    """Return every setting; raises UnreachedError where one cannot be read."""
    if source.lacking:
        options = ", ".join(OPTION_OF[each] for each in source.lacking)
        problem = f"{source.subject} keeps {', '.join(source.lacking)} neither in a Secret nor in a ConfigMap"
        raise UnreachedError(problem, f"Give {options}.")
    files = {name: _read_file(kubernetes, source.namespace, name, kept) for name, kept in source.files.items()}
    return {**source.texts, **files}


def _read_file(kubernetes: Kubernetes, namespace: str, name: str, kept: KeptIn) -> str:
    """Return what is in a file; of one in PEM without the words that some tools write in front of it."""
    text = _read_kept(kubernetes, namespace, kept)
    if name == "password":
        return text
    if PEM not in text:
        look = kubectl(namespace, "describe", kept.kind.lower(), kept.name)
        raise UnreachedError(f"{kept.kind} {namespace}/{kept.name}: what is in {kept.key!r} is no PEM", look)
    return text[text.index(PEM) :]


OPTION_OF = {"ca": "--ca", "cert": "--cert", "key": "--key", "password": "--user and --password-file"}


def _read_kept(kubernetes: Kubernetes, namespace: str, kept: KeptIn) -> str:
    """Return the text of a key of a Secret or a ConfigMap."""
    what = f"{kept.kind} {namespace}/{kept.name}"
    try:
        item = kubernetes.get(f"{CORE}/namespaces/{namespace}/{kept.kind.lower()}s/{kept.name}")
    except KubernetesError as error:
        problem, remedy = explain_denial(str(error)) or (str(error), kubectl(namespace, "get", kept.kind, kept.name))
        own = "Or give what is in it: --ca, --cert, --key, --user and --password-file."
        raise UnreachedError(f"{what} cannot be read: {problem}", f"{remedy}. {own}") from error
    data = item.get("data")
    if not isinstance(data, dict) or kept.key not in data:
        look = kubectl(namespace, "describe", kept.kind.lower(), kept.name)
        raise UnreachedError(f"{what} has no key {kept.key!r}", look)
    text = str(data[kept.key])
    return _decode(text, what) if kept.kind == "Secret" else text


def _decode(text: str, what: str) -> str:
    try:
        return base64.b64decode(text).decode().rstrip("\r\n")
    except ValueError as error:
        raise UnreachedError(f"{what} has a value that is no text", f"kubectl describe {what}") from error
