"""The requests that the operator makes itself: Pods, metadata lists, reads that confirm, statuses, gates, Events.

Nothing is retried here, except for a status that met a conflict, and everything has a deadline: callers are loops that
come again.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import aiohttp

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.resync import ObjectRef
from grpc_etcd_operator.core.services import GrpcService, parse_service
from grpc_etcd_operator.core.targets import Target, parse_target
from grpc_etcd_operator.kube import pages
from grpc_etcd_operator.kube.pages import Event, Page, Refusal
from grpc_etcd_operator.kube.paging import LIST_SECONDS

T = TypeVar("T")
GROUP, VERSION, PLURAL = "grpc-etcd.dev", "v1alpha1", "grpcservices"
TARGETS = "services"  # Kubernetes' own, which GrpcServices name
SERVICES, PODS, EVENTS = f"apis/{GROUP}/{VERSION}", "api/v1", "apis/events.k8s.io/v1"
CHUNK = 250  # objects in a page of a list; 500 takes 5 MiB more at the peak of a start with 10,000 Pods (measured)
TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_PAGE_TIMEOUT = aiohttp.ClientTimeout(total=LIST_SECONDS, sock_connect=5)
WATCH_SECONDS = 290  # a watch is renewed after a while
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5)
CONFLICTS = 4  # so often a status is tried again at once where somebody else was faster. Arbitrary
_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class ApiError(Exception):
    """The API server refused: `status` is HTTP's code, the text is its own message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status


class CrdState(NamedTuple):
    """What discovery says of our resource: whether it is served, and whether it is being taken away."""

    served: bool
    terminating: bool
    other_versions: tuple[str, ...] = ()


class Client:
    """Talks to one API server through an aiohttp session that carries the identity."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self._server, self._session = server, session

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return self._server

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    async def list_seen(self, resource: str, namespaces: Sequence[str], selector: str = "") -> AsyncIterator[ObjectRef]:
        """List a resource completely and consistently, metadata only, in chunks."""
        query = {"limit": str(CHUNK), "labelSelector": selector}
        async for page in self._pages(resource, namespaces, query, pages.METADATA, pages.read_metadata):
            for seen in page.items:
                yield seen

    async def probe(self, resource: str, namespace: str) -> str:
        """Ask for as little as possible of a resource; return the version that the API server is at."""
        query = {"limit": "1"}
        answer = await self._send("get", self._path(resource, namespace), query, pages.METADATA)
        return _parse(pages.read_metadata, answer).version

    def list_pods(self, namespace: str, selector: str) -> AsyncIterator[Page[PodMessage]]:
        """List Pods (messages), page by page."""
        query = {"limit": str(CHUNK), "labelSelector": selector}
        return self._pages("pods", (namespace,), query, pages.PROTOBUF, pages.read_pods)

    def list_services(self, namespace: str) -> AsyncIterator[Page[Target]]:
        """List Services as what GrpcServices take of them, page by page."""
        return self._pages(TARGETS, (namespace,), {"limit": str(CHUNK)}, _JSON, _read_targets)

    async def watch_pods(self, namespace: str, selector: str, version: str) -> AsyncIterator[Event]:
        """Return what has happened since a version, until the API server ends that; ApiError 410: it has forgotten."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "labelSelector": selector,
        }
        url, params = self._url(self._path("pods", namespace)), _without_empty(query)
        headers = {"Accept": pages.PROTOBUF}
        async with self._session.get(url, params=params, headers=headers, timeout=_WATCH_TIMEOUT) as reply:
            if not reply.ok:
                raise _refused(reply, await reply.read())
            async for frame in _frames(reply.content):
                reported = _parse(pages.read_event, frame)
                if isinstance(reported, Refusal):
                    raise ApiError(reported.status, reported.message)
                yield reported

    async def _pages(
        self,
        resource: str,
        namespaces: Sequence[str],
        query: Mapping[str, str],
        accept: str,
        read: Callable[[bytes], Page[T]],
    ) -> AsyncIterator[Page[T]]:
        for namespace in namespaces or ("",):
            token = ""
            while True:
                answer = await self._send("get", self._path(resource, namespace), {**query, "continue": token}, accept)
                page = _parse(read, answer)
                yield page
                token = page.token
                if not token:
                    break

    async def uid_of(self, resource: str, namespace: str, name: str) -> str | None:
        """Read the UID that an object has now; None when there is no such object."""
        path = f"{self._path(resource, namespace)}/{name}"
        try:
            return _parse(_read_uid, await self._request("get", path, accept=_METADATA))
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def read_pod(self, namespace: str, name: str) -> PodMessage | None:
        """Read a Pod, as lists and watches give it; None when it does not exist."""
        try:
            answer = await self._send("get", f"{self._path('pods', namespace)}/{name}", {}, pages.PROTOBUF)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return _parse(pages.read_pod, answer)

    async def is_selected(self, namespace: str, name: str, uid: str, selector: str) -> bool:
        """Return whether a label selector finds a Pod; the API server knows best how it is read."""
        query = {"labelSelector": selector, "fieldSelector": f"metadata.name={name}"}
        pods = self._pages("pods", (namespace,), query, pages.METADATA, pages.read_metadata)
        return any([seen.uid == uid async for page in pods for seen in page.items])

    async def read(self, resource: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Read an object; None when it does not exist."""
        try:
            found: Mapping[str, Any] = await self._request("get", f"{self._path(resource, namespace)}/{name}")
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return found

    async def crd_state(self) -> CrdState:
        """Ask discovery for our resource; a CRD on its way out no longer offers `create`."""
        try:
            found = await self._request("get", SERVICES)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return CrdState(served=False, terminating=False, other_versions=await self._versions())
        return _parse(_read_crd_state, found)

    async def _versions(self) -> tuple[str, ...]:
        try:
            group = await self._request("get", f"apis/{GROUP}")
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return ()
        return _parse(_read_versions, group)

    async def cluster_uid(self) -> str:
        """Read the UID of the namespace kube-system, which stands for the cluster."""
        found = await self._request("get", "api/v1/namespaces/kube-system", accept=_METADATA)
        return _parse(_read_uid, found)

    async def patch_service_status(
        self,
        service: GrpcService,
        status: Mapping[str, Any],
        renew: Callable[[GrpcService], Mapping[str, Any] | None] | None = None,
    ) -> Mapping[str, Any]:
        """Write a status to the GrpcService that it speaks of, also where others change it faster than a watch reports.

        `renew` makes of the object as it is now the status to write to it; None: it may not be written. Raises the
        conflict (409) in that case, where the object is another by now, and where somebody else is faster each time.
        Each try names a version: of a custom resource the API server ignores the UID.
        """
        version = service.resource_version
        for _ in range(CONFLICTS):
            try:
                return await self._patch_service_status(service, status, version)
            except ApiError as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
                raw = await self.read(PLURAL, service.namespace, service.name)
                found = None if raw is None else _parse(parse_service, raw)
                if found is None or found.uid != service.uid:
                    raise
                renewed = renew(found) if renew else status
                if renewed is None:
                    raise
                status, version = renewed, found.resource_version
        return await self._patch_service_status(service, status, version)

    async def _patch_service_status(
        self, of: GrpcService, status: Mapping[str, Any], version: str
    ) -> Mapping[str, Any]:
        path = f"{self._path(PLURAL, of.namespace)}/{of.name}/status"
        metadata = _without_empty({"uid": of.uid, "resourceVersion": version})
        found: Mapping[str, Any] = await self._request("patch", path, body={"metadata": metadata, "status": status})
        return found

    async def open_gate(self, namespace: str, name: str, uid: str, condition: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set one condition of a Pod, the only thing that is ever written to one; return what became of the Pod."""
        body = {"metadata": {"uid": uid}, "status": {"conditions": [condition]}}
        path = f"{self._path('pods', namespace)}/{name}/status"
        content = "application/strategic-merge-patch+json"
        found: Mapping[str, Any] = await self._request("patch", path, body=body, content=content)
        return found

    async def post_event(self, namespace: str, event: Mapping[str, Any]) -> None:
        """Post a Kubernetes Event."""
        await self._request("post", f"{EVENTS}/namespaces/{namespace}/events", body=event, content=_JSON)

    def _path(self, resource: str, namespace: str) -> str:
        root = SERVICES if resource == PLURAL else PODS
        return f"{root}/namespaces/{namespace}/{resource}" if namespace else f"{root}/{resource}"

    def _url(self, path: str) -> str:
        return f"{self._server}/{path}"

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        accept: str = _JSON,
        content: str = "application/merge-patch+json",
    ) -> Any:
        return _parse(json.loads, await self._send(method, path, {}, accept, body, content))

    async def _send(  # noqa: PLR0913, PLR0917  the parts of an HTTP request
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        accept: str,
        body: Mapping[str, Any] | None = None,
        content: str = "",
    ) -> bytes:
        headers = {"Accept": accept, **({"Content-Type": content} if body is not None else {})}
        data = None if body is None else json.dumps(body).encode()
        url, params, timeout = self._url(path), _without_empty(query), _PAGE_TIMEOUT if "limit" in query else TIMEOUT
        async with self._session.request(
            method, url, params=params, data=data, headers=headers, timeout=timeout
        ) as reply:
            answer = await reply.read()
            if not reply.ok:
                raise _refused(reply, answer)
            return answer


def kind_of(namespace: str, error: Exception) -> tuple[str, object]:
    """Return what errors about the objects of a namespace have in common."""
    return namespace, error.status if isinstance(error, ApiError) else type(error)


def _without_empty(query: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in query.items() if value}


async def _frames(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into frames of any length; a cut in the middle of one is the stream's own error."""
    rest = b""
    async for chunk in content.iter_any():
        frames, rest = _parse(pages.split_frames, rest + chunk)
        for frame in frames:
            yield frame
    if rest:
        raise ApiError(HTTPStatus.BAD_GATEWAY, f"the watch ended within an event: {rest[:40]!r}")


def _refused(reply: aiohttp.ClientResponse, answer: bytes) -> ApiError:
    return ApiError(reply.status, _message(answer) or reply.reason or "refused")


def _read_targets(answer: bytes) -> Page[Target]:
    found = json.loads(answer)
    metadata = found["metadata"]
    targets = list(map(parse_target, found["items"] or ()))
    return Page(targets, metadata.get("continue") or "", str(metadata["resourceVersion"]))


def _read_uid(found: Any) -> str:
    return str(found["metadata"]["uid"])


def _read_crd_state(found: Any) -> CrdState:
    verbs = next((each["verbs"] for each in found.get("resources") or () if each["name"] == PLURAL), None)
    return CrdState(served=verbs is not None, terminating=verbs is not None and "create" not in verbs)


def _read_versions(group: Any) -> tuple[str, ...]:
    return tuple(each["version"] for each in group.get("versions") or ())


def _parse(parse: Callable[[Any], T], answer: object) -> T:
    """Read an answer; what cannot be read did not come from an API server."""
    try:
        return parse(answer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ApiError(HTTPStatus.BAD_GATEWAY, f"the answer is not an API server's: {error}") from error


def _message(answer: bytes) -> str:
    try:
        refusal = pages.read_refusal(answer)
        return str(json.loads(answer)["message"]) if refusal is None else refusal
    except (ValueError, KeyError, TypeError):
        return ""
