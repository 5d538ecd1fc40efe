"""Read a Kubernetes cluster over plain HTTP: a few lists, as whoever is identified by `Access`.

The standard library is enough for that, so that the command needs no client of Kubernetes; `cli.kubeconfig` finds the
server and the identity. Nothing is written.
"""

import contextlib
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from grpc_etcd.inspect.cluster import (
    ClusterFacts,
    Denied,
    Deployment,
    PodFacts,
    ServiceFacts,
    TargetFacts,
    parse_deployment,
    parse_pod,
    parse_service,
)
from grpc_etcd.inspect.findings import OPERATORS
from grpc_etcd.inspect.targets import parse_target, resolve

ANSWER_SECONDS = 15.0
PAGE_ITEMS = 500  # as kubectl asks for
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
SERVICES, APPS, CORE = "/apis/grpc-etcd.dev/v1alpha1", "/apis/apps/v1", "/api/v1"
CHART = "grpc-etcd-operator"


class KubernetesError(Exception):
    """The API server cannot be read; `status` is its HTTP code, 0 where it did not answer."""

    def __init__(self, problem: str, status: int = 0) -> None:
        super().__init__(problem)
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and as whom it is asked; `namespace` is the one of the context."""

    server: str
    context: ssl.SSLContext = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    namespace: str = "default"
    proxy: str = ""
    is_in_cluster: bool = False  # it is a Pod's service account


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: lists have none, and the identity would go along to whichever server is named."""

    def redirect_request(self, *_: Any) -> None:
        """Leave the answer an error."""


class Kubernetes:
    """Asks one API server; `skew_seconds` is by how much its clock was ahead at the last answer."""

    def __init__(self, access: Access) -> None:
        self.access, self.skew_seconds = access, 0.0
        proxies = [urllib.request.ProxyHandler({"https": access.proxy})] if access.proxy else []
        tls = urllib.request.HTTPSHandler(context=access.context)
        self._opener = urllib.request.build_opener(tls, _NoRedirects, *proxies)

    @property
    def now(self) -> float:
        """Return the time by the API server's clock."""
        return time.time() + self.skew_seconds

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Return an object or a list; raises KubernetesError."""
        return self._ask(path + (f"?{urlencode(query)}" if query else ""))

    def may_list(self, user: str, group: str, resource: str, namespace: str) -> bool:
        """Return whether a user may list objects of a namespace, of all if it is empty; raises KubernetesError.

        A SubjectAccessReview is an answer only: nothing is stored.
        """
        attributes = {"verb": "list", "group": group, "resource": resource, "namespace": namespace}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
        answer = self._ask(REVIEWS, json.dumps({**review, "spec": {"user": user, "resourceAttributes": attributes}}))
        status = answer.get("status")
        return isinstance(status, dict) and status.get("allowed") is True

    def _ask(self, path: str, body: str = "") -> dict[str, Any]:
        headers = {**self.access.headers, "Accept": "application/json", "Content-Type": "application/json"}
        request = urllib.request.Request(self.access.server + path, body.encode() or None, headers)  # noqa: S310  the kubeconfig's server
        asked_at = time.time()
        try:
            with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
                self.skew_seconds = read_skew(answer.headers.get("Date"), asked_at, time.time())
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                raise KubernetesError(_explain(error), error.code) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise KubernetesError(f"{self.access.server}: {getattr(error, 'reason', error)}") from error
        return found if isinstance(found, dict) else {}

    def items(self, path: str, **query: str | int) -> Iterator[dict[str, Any]]:
        """Return the objects of a list, page after page."""
        more = ""
        while True:
            page = self.get(path, limit=PAGE_ITEMS, **query, **({"continue": more} if more else {}))
            items = page.get("items") or []
            if not (isinstance(items, list) and all(map(_is_object, (page, *items)))):
                raise KubernetesError(f"{self.access.server} answers, but not as an API server does")
            yield from items
            more = page["metadata"].get("continue") or ""
            if not more:
                return


def _is_object(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("metadata"), dict)


def _explain(error: urllib.error.HTTPError) -> str:
    try:
        message = json.loads(error.read())["message"]
    except (ValueError, KeyError, TypeError, OSError):
        message = ""
    return f"{error.code} {message or error.reason}"


def read_skew(date: str | None, before: float, after: float) -> float:
    """Return by how many seconds the clock of whoever dated an answer is ahead at least, negative if it is behind.

    By this machine's clock the answer was dated between `before` and `after`; a date has whole seconds.
    """
    try:
        dated = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return 0.0
    return max(dated - after, 0.0) or min(dated + 1.0 - before, 0.0)


def observe(kubernetes: Kubernetes, namespace: str) -> ClusterFacts:
    """Read all that is judged; an empty namespace means all. Raises KubernetesError where the server cannot be read."""
    denied: list[Denied] = []
    services, has_crd = _services(kubernetes, namespace, denied)
    targets = _targets(kubernetes, namespace, services, denied)
    deployments = _deployments(kubernetes)
    concerned = {each.namespace for each in services if namespace in {"", each.namespace}}
    pods = _allowed(lambda: list(kubernetes.items(path_of(CORE, namespace, "pods"))), "pods", namespace, denied)
    return ClusterFacts(
        namespace=namespace,
        services=tuple(resolve(each, targets) for each in services if namespace in {"", each.namespace}),
        others=tuple(each for each in services if namespace not in {"", each.namespace}),
        pods=tuple(map(parse_pod, pods or ())),
        targets=targets,
        deployments=deployments,
        denied=tuple(denied),
        barred=tuple(_barred(kubernetes, deployments or (), concerned)),
        has_crd=has_crd,
        has_namespace=not namespace or bool(pods) or _has_namespace(kubernetes, namespace),
        uid=_cluster_uid(kubernetes),
        skew_seconds=kubernetes.skew_seconds,
    )


def observe_pods(kubernetes: Kubernetes, namespace: str) -> list[PodFacts]:
    """Read the Pods of a namespace; none where they may not be read."""
    read = _allowed(lambda: list(kubernetes.items(path_of(CORE, namespace, "pods"))), "pods", namespace, [])
    return list(map(parse_pod, read or ()))


def observe_targets(kubernetes: Kubernetes, namespace: str) -> list[TargetFacts] | None:
    """Read the Services of a namespace (empty: of all); None where they may not be read."""
    items = _allowed(lambda: list(kubernetes.items(path_of(CORE, namespace, "services"))), "services", namespace, [])
    return None if items is None else [each for each in map(parse_target, items) if each]


def _targets(
    kubernetes: Kubernetes, namespace: str, services: Iterable[ServiceFacts], denied: list[Denied]
) -> tuple[TargetFacts, ...]:
    """Return the Services of what is looked at, if any GrpcService there names one."""
    if not any(each.service_ref and namespace in {"", each.namespace} for each in services):
        return ()
    found = observe_targets(kubernetes, namespace)
    if found is None:
        denied.append(Denied("services", namespace))
    return tuple(found or ())


def path_of(group: str, namespace: str, resource: str) -> str:
    """Return the path of a list; without a namespace it is that of all of them."""
    return f"{group}/namespaces/{namespace}/{resource}" if namespace else f"{group}/{resource}"


def _allowed(read: Callable[[], Any], resource: str, namespace: str, denied: list[Denied]) -> Any:
    """Return what is read; None where the caller may not."""
    try:
        return read()
    except KubernetesError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        denied.append(Denied(resource, namespace))
        return None


def _services(kubernetes: Kubernetes, namespace: str, denied: list[Denied]) -> tuple[list[ServiceFacts], bool]:
    """Return the GrpcServices of all namespaces where they may be read: a name may be taken by any of them."""

    def read(of: str) -> list[ServiceFacts]:
        items = kubernetes.items(path_of(SERVICES, of, "grpcservices"))
        return [parse_service(each, kubernetes.now, changed_at(each)) for each in items]

    try:
        everywhere = _allowed(lambda: read(""), "grpcservices", "", [])
        if everywhere is None and namespace:
            everywhere = _allowed(lambda: read(namespace), "grpcservices", namespace, denied)
        elif everywhere is None:
            denied.append(Denied("grpcservices", ""))
    except KubernetesError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return [], False
    return everywhere or [], True


def _deployments(kubernetes: Kubernetes) -> tuple[Deployment, ...] | None:
    found = _allowed(lambda: list_operators(kubernetes), "deployments", "", [])
    return None if found is None else tuple(map(parse_deployment, found))


def _barred(kubernetes: Kubernetes, deployments: Collection[Deployment], namespaces: Collection[str]) -> list[Denied]:
    """Return what no operator may list in namespaces; nothing where the caller may not ask, or there is no operator."""
    found: list[Denied] = []
    with contextlib.suppress(KubernetesError):
        for group, resource in (("", "pods"), (SERVICES.split("/")[2], "grpcservices")):
            lists = partial(_may_any_list, kubernetes, deployments, group, resource)
            if deployments and namespaces and not lists(""):
                found += [Denied(resource, each) for each in sorted(namespaces) if not lists(each)]
    return found


def _may_any_list(
    kubernetes: Kubernetes, deployments: Iterable[Deployment], group: str, resource: str, namespace: str
) -> bool:
    return any(kubernetes.may_list(each.user, group, resource, namespace) for each in deployments)


def list_operators(kubernetes: Kubernetes, namespace: str = "") -> list[Mapping[str, Any]]:
    """List the chart's Deployments of operators, in one namespace or in all."""
    path = path_of(APPS, namespace, "deployments")
    return [each for each in kubernetes.items(path, labelSelector=OPERATORS) if is_charts(each)]


def is_charts(item: Mapping[str, Any]) -> bool:
    """Return whether an object is the chart's."""
    labels = item["metadata"].get("labels") or {}
    is_named = labels.get("app.kubernetes.io/name") == CHART
    return is_named or str(labels.get("helm.sh/chart")).startswith(f"{CHART}-")


def _has_namespace(kubernetes: Kubernetes, namespace: str) -> bool:
    """Return whether a namespace is there, as far as the caller may know."""
    try:
        _allowed(lambda: kubernetes.get(f"{CORE}/namespaces/{namespace}"), "namespaces", "", [])
    except KubernetesError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


def _cluster_uid(kubernetes: Kubernetes) -> str:
    found = _allowed(lambda: kubernetes.get(f"{CORE}/namespaces/kube-system"), "namespaces", "", [])
    return str(found["metadata"].get("uid") or "") if _is_object(found) else ""


def changed_at(item: Mapping[str, Any]) -> float:
    """Return when an object's spec was last written, as far as it says so, in Unix seconds."""
    metadata = item.get("metadata") or {}
    writes = [each for each in metadata.get("managedFields") or () if not each.get("subresource")]
    times = [metadata.get("creationTimestamp"), *(each.get("time") for each in writes)]
    return max((_read_time(each) for each in times if each), default=0.0)


def _read_time(text: str) -> float:
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except ValueError:
        return 0.0
