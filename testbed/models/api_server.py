"""A model of the Kubernetes API server: objects and their versions, lists in pages, watches with bookmarks, rights.

It answers what the operator asks, over the connections of http_channel.py, as kube-apiserver 1.37 does; who plays the
kubelet or an owner calls its methods. The contract suite, tests/simulation/test_api_contract.py, runs against it and
against a real API server.
"""

import asyncio
import copy
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from grpc_etcd_operator.kube.messages import MAGIC, message_class
from grpc_etcd_operator.sources.json_pods import read_pod
from testbed.models.wires import OUTSIDE, Wire

Object = dict[str, Any]
GROUP, VERSION = "grpc-etcd.dev", "v1alpha1"
PODS, SERVICES, EVENTS, NAMESPACES = "pods", "grpcservices", "events", "namespaces"
TARGETS = "services"  # Kubernetes' own, which GrpcServices name
BOOKMARK_SECONDS = 60.0
LAST_BOOKMARK_SECONDS = 2.0  # so long before a watch ends it is told another one
LONGEST_WATCH_SECONDS = 1800.0
FIRST_VERSION = 1000
WHOLE = "\0"  # of a label requirement: any value
KINDS = {PODS: ("v1", "Pod"), TARGETS: ("v1", "Service"), SERVICES: (f"{GROUP}/{VERSION}", "GrpcService")}
ROOTS = {
    "/api/v1": (PODS, TARGETS, EVENTS, NAMESPACES),
    "/apis/events.k8s.io/v1": (EVENTS,),
    f"/apis/{GROUP}/{VERSION}": (SERVICES,),
}
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
CRD_GROUP = "apiextensions.k8s.io"
CLUSTER_SCOPED = ("Namespace", "CustomResourceDefinition")
CORE = [
    (PODS, "Pod", VERBS),
    ("pods/status", "Pod", ["get", "patch", "update"]),
    (TARGETS, "Service", VERBS),
    (NAMESPACES, "Namespace", VERBS),
    (EVENTS, "Event", VERBS),
]
CRDS = [("customresourcedefinitions", "CustomResourceDefinition", VERBS)]
DEFAULTS = {"layouts": ["jupiter"], "registries": ["default"], "scheme": "grpc", "weight": 100, "enable": True}


class RefusedError(Exception):
    """The API server refuses: HTTP's code, a reason and a message."""

    def __init__(self, code: int, reason: str, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after


class Change(NamedTuple):
    """Something that has happened: to which resource, the object as it is now, and as it was (None: it was not)."""

    version: int
    resource: str
    now: Object | None
    before: Object | None


@dataclass(slots=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def accept(self) -> str:
        """What the client wants to read."""
        return self.headers.get("accept", "")

    @property
    def is_protobuf(self) -> bool:
        """Say whether it wants protobuf."""
        return "protobuf" in self.accept

    @property
    def token(self) -> str:
        """Who asks."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass(slots=True)
class Reply:
    """A reply: with a body, or with a watch that goes on."""

    status: int = 200
    body: bytes = b""
    content: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    watch: "Watch | None" = None


class Watch:
    """One watch; `send` is given by the connection, `end` ends the answer."""

    def __init__(self, server: "ApiServerModel", request: Request, resource: str, namespace: str) -> None:
        self.resource, self._namespace = resource, namespace
        self._server, self._request = server, request
        self._matches = _make_filter(request)
        self._timers: list[asyncio.TimerHandle] = []
        self._version = 0
        self._send: Callable[[bytes], None] = lambda _: None
        self._end: Callable[[], None] = lambda: None

    def start(self, send: Callable[[bytes], None], end: Callable[[], None]) -> None:
        """Tell what has happened since the version that was asked for, and go on."""
        self._send, self._end = send, end
        server, loop = self._server, asyncio.get_running_loop()
        self._version = int(self._request.query.get("resourceVersion") or server.version)
        if self._version < server.forgotten:
            self._refuse(RefusedError(410, "Expired", f"too old resource version: {self._version}"))
            return
        for change in server.changes_since(self._version):
            self.tell(change)
        seconds = float(self._request.query.get("timeoutSeconds", LONGEST_WATCH_SECONDS))
        self._timers = [loop.call_later(seconds, self.finish, context=OUTSIDE)]
        if self._request.query.get("allowWatchBookmarks") == "true":
            self._timers.append(
                loop.call_later(max(0.0, seconds - LAST_BOOKMARK_SECONDS), self._bookmark, context=OUTSIDE)
            )
            self._timers.append(loop.call_later(BOOKMARK_SECONDS, self._bookmark_again, context=OUTSIDE))
        server.watches[self] = None

    def tell(self, change: Change) -> None:
        """Tell what has happened, if it is of this watch: a version of the future is waited for."""
        if change.resource != self.resource or change.version <= self._version:
            return
        is_in, was_in = self._holds(change.now), self._holds(change.before)
        if not (is_in or was_in):
            return
        kind = "DELETED" if not is_in else ("MODIFIED" if was_in else "ADDED")
        item = change.now if is_in else change.before
        assert item is not None  # noqa: S101  one of them is
        self._version = change.version
        self._say(kind, _with_version(item, change.version))

    def finish(self) -> None:
        """End the answer in order."""
        self.leave()
        self._end()

    def leave(self) -> None:
        """Take it that nobody reads any more."""
        self._server.watches.pop(self, None)
        for timer in self._timers:
            timer.cancel()

    def _holds(self, item: Object | None) -> bool:
        return item is not None and _is_in(item, self._namespace) and self._matches(item)

    def _bookmark(self) -> None:
        version = max(self._version, self._server.version)
        if self._version <= self._server.version:  # else it waits for the future and is told nothing
            self._version = version
            api_version, kind = KINDS[self.resource]
            self._say(
                "BOOKMARK", {"apiVersion": api_version, "kind": kind, "metadata": {"resourceVersion": str(version)}}
            )

    def _bookmark_again(self) -> None:
        self._bookmark()
        self._timers[-1] = asyncio.get_running_loop().call_later(
            BOOKMARK_SECONDS, self._bookmark_again, context=OUTSIDE
        )

    def _refuse(self, error: RefusedError) -> None:
        self._say("ERROR", make_status(error))
        self.finish()

    def _say(self, kind: str, item: Object) -> None:
        if self._request.is_protobuf:
            event = message_class("WatchEvent")(type=kind)
            event.object.raw = encode(item)
            frame = event.SerializeToString()
            self._send(len(frame).to_bytes(4, "big") + frame)
        else:
            self._send(json.dumps({"type": kind, "object": item}).encode() + b"\n")


class ApiServerModel:
    """One API server. Belongs to the event loop in which it is made."""

    def __init__(self) -> None:
        self.wire = Wire(name="api server")
        self.version = FIRST_VERSION
        self.forgotten = 0  # versions before this one are gone
        self.is_crd_served = self.is_crd_kept = True
        self.watches: dict[Watch, None] = {}
        self.forbidden: set[tuple[str, str, str, str]] = set()  # token, verb, resource, namespace
        self.strangers: set[str] = set()  # tokens that are no longer taken: 401
        self.overload = 0  # so many requests are answered with 429 first
        self.conflicts = 0  # so many changes of Pods' statuses meet another's
        self.unanswered = 0  # so many requests for a watch are never answered
        self.on_change: Callable[[Change], None] | None = None
        self.events: list[Object] = []
        self._objects: dict[str, dict[tuple[str, str], Object]] = {PODS: {}, TARGETS: {}, SERVICES: {}}
        self._changes: list[Change] = []
        self._given: set[tuple[str, str]] = set()  # which versions objects have had, by UID
        self._pages: dict[str, tuple[int, list[Object]]] = {}
        self.kube_system = str(uuid.uuid4())

    def __repr__(self) -> str:
        return f"<ApiServerModel at {self.version}>"

    # What others do

    def all(self, resource: str) -> list[Object]:
        """List all objects of a resource, as they are."""
        return list(self._objects[resource].values())

    def find(self, resource: str, namespace: str, name: str) -> Object | None:
        """Return an object as it is."""
        return self._objects[resource].get((namespace, name))

    def create(self, resource: str, item: Object) -> Object:
        """Create an object."""
        item = copy.deepcopy(item)
        metadata = item["metadata"]
        key = metadata["namespace"], metadata["name"]
        if key in self._objects[resource]:
            raise RefusedError(409, "AlreadyExists", f'{resource} "{key[1]}" already exists')
        item["apiVersion"], item["kind"] = KINDS[resource]
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
        if resource == SERVICES:
            metadata["generation"] = 1
            item["spec"] = DEFAULTS | item["spec"]
            item["status"] = {"observedGeneration": -1}
        return self._store(resource, item, None)

    def update(self, resource: str, namespace: str, name: str, change: Callable[[Object], None]) -> Object:
        """Change an object; where nothing changes nothing has happened. A changed spec is another generation."""
        before = self._demand(resource, namespace, name)
        item = copy.deepcopy(before)
        change(item)
        if item == before:
            return before
        if resource == SERVICES and item["spec"] != before["spec"]:
            item["spec"] = DEFAULTS | item["spec"]
            item["metadata"]["generation"] += 1
        return self._store(resource, item, before)

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Remove an object."""
        before = self._demand(resource, namespace, name)
        del self._objects[resource][namespace, name]
        self._note(resource, None, before)

    def compact(self) -> None:
        """Forget all versions but the newest: older watches and pages are told 410."""
        self.forgotten = self.version
        self._changes.clear()
        self._pages.clear()

    def end_watches(self, *resources: str) -> None:
        """End all watches in order, or those of some resources, as an API server does now and then."""
        for watch in tuple(self.watches):
            if not resources or watch.resource in resources:
                watch.finish()

    def backup(self) -> tuple[int, Any]:
        """Return all that there is."""
        return self.version, copy.deepcopy(self._objects)

    def restore(self, backup: tuple[int, Any]) -> None:
        """Restart it from a backup: versions go back, and connections end."""
        version, objects = backup
        self.version, self._objects = version, copy.deepcopy(objects)
        self.compact()
        self.watches.clear()
        self.wire.cut()

    def delete_crd(self) -> None:
        """Take the CRD away with all its objects."""
        for namespace, name in tuple(self._objects[SERVICES]):
            self.delete(SERVICES, namespace, name)
        self.is_crd_served = self.is_crd_kept = False
        self.end_watches(SERVICES)

    def create_crd(self) -> None:
        """Bring it back."""
        self.is_crd_served = self.is_crd_kept = True

    def forbid(self, token: str, verb: str, resource: str, namespace: str = "") -> None:
        """Refuse somebody something; watches that are open go on."""
        self.forbidden.add((token, verb, resource, namespace))

    def _demand(self, resource: str, namespace: str, name: str) -> Object:
        found = self.find(resource, namespace, name)
        if found is None:
            raise RefusedError(404, "NotFound", f'{resource} "{name}" not found')
        return found

    def _store(self, resource: str, item: Object, before: Object | None) -> Object:
        metadata = item["metadata"]
        # That an object has one version in two histories, before and after a backup was restored, is a known limitation
        # of the operator (docs/limits.md). Other objects' changes come between, as most often in a real cluster.
        while (metadata["uid"], str(self.version + 1)) in self._given:
            self.version += 1
        metadata["resourceVersion"] = str(self.version + 1)
        self._given.add((metadata["uid"], metadata["resourceVersion"]))
        self._objects[resource][metadata["namespace"], metadata["name"]] = item
        self._note(resource, item, before)
        return item

    def _note(self, resource: str, now: Object | None, before: Object | None) -> None:
        self.version += 1
        change = Change(self.version, resource, now, before)
        self._changes.append(change)
        for watch in tuple(self.watches):
            watch.tell(change)
        if self.on_change:
            self.on_change(change)

    def changes_since(self, version: int) -> Iterator[Change]:
        """List what has happened after a version."""
        return (change for change in self._changes if change.version > version)

    # Requests

    def answer(self, request: Request) -> Reply:
        """Answer a request."""
        try:
            return self._route(request)
        except RefusedError as error:
            status = make_status(error)
            later = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
            if request.is_protobuf:
                return Reply(error.code, encode(status), "application/vnd.kubernetes.protobuf", later)
            return Reply(error.code, json.dumps(status).encode(), headers=later)

    def _route(self, request: Request) -> Reply:
        if request.token in self.strangers:
            raise RefusedError(401, "Unauthorized", "Unauthorized")
        if self.overload:
            self.overload -= 1
            raise RefusedError(429, "TooManyRequests", "too many requests, please try again later", 1)
        if found := self._discover(request.path):
            return _json(found)
        for root, resources in ROOTS.items():
            if request.path.startswith(f"{root}/"):
                return self._route_resource(request, resources, request.path.removeprefix(f"{root}/").split("/"))
        raise RefusedError(404, "NotFound", "the server could not find the requested resource")

    def _route_resource(self, request: Request, resources: tuple[str, ...], parts: list[str]) -> Reply:
        if parts == [NAMESPACES, "kube-system"]:
            return _json(
                {"kind": "PartialObjectMetadata", "metadata": {"name": "kube-system", "uid": self.kube_system}}
            )
        namespace = ""
        if parts[0] == NAMESPACES:
            namespace, parts = parts[1], parts[2:]
        resource, *rest = parts
        if resource not in resources or (resource == SERVICES and not self.is_crd_served):
            raise RefusedError(404, "NotFound", "the server could not find the requested resource")
        self._permit(request, _verb(request, rest), "/".join([resource, *rest[1:]]), namespace)
        if resource == EVENTS:
            return self._post_event(request)
        if not rest:
            return (
                self._watch(request, resource, namespace)
                if "watch" in request.query
                else self._list(request, resource, namespace)
            )
        if request.method == "PATCH":
            return _json(self._patch(request, resource, namespace, rest[0]))
        return self._get(request, resource, namespace, rest[0])

    def _permit(self, request: Request, verb: str, resource: str, namespace: str) -> None:
        for place in {namespace, ""}:
            if (request.token, verb, resource, place) in self.forbidden:
                raise RefusedError(
                    403, "Forbidden", f'{resource} is forbidden: User "{request.token}" cannot {verb} resource'
                )

    def _discover(self, path: str) -> Object | None:
        groups = [_group(CRD_GROUP, "v1"), *([_group(GROUP, VERSION)] if self.is_crd_kept else [])]
        known: dict[str, Object] = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "groups": groups},
            "/api/v1": _resources("v1", CORE),
            f"/apis/{CRD_GROUP}/v1": _resources(f"{CRD_GROUP}/v1", CRDS),
        }
        if self.is_crd_kept:
            verbs = VERBS if self.is_crd_served else [each for each in VERBS if each != "create"]
            kinds = [
                (SERVICES, "GrpcService", verbs),
                (f"{SERVICES}/status", "GrpcService", ["get", "patch", "update"]),
            ]
            known[f"/apis/{GROUP}"] = _group(GROUP, VERSION)
            known[f"/apis/{GROUP}/{VERSION}"] = _resources(f"{GROUP}/{VERSION}", kinds)
        return known.get(path)

    def _get(self, request: Request, resource: str, namespace: str, name: str) -> Reply:
        item = self._demand(resource, namespace, name)
        if request.is_protobuf:
            return Reply(body=encode(item), content="application/vnd.kubernetes.protobuf")
        if "PartialObjectMetadata" in request.accept:
            return _json({"kind": "PartialObjectMetadata", "metadata": item["metadata"]})
        return _json(item)

    def _list(self, request: Request, resource: str, namespace: str) -> Reply:
        version, left = self._find_page(request, resource, namespace)
        limit = int(request.query.get("limit", "0")) or len(left)
        items, left = left[:limit], left[limit:]
        metadata: Object = {"resourceVersion": str(version)}
        if left:
            metadata["continue"] = token = str(uuid.uuid4())
            metadata["remainingItemCount"] = len(left)
            self._pages[token] = version, left
        if request.is_protobuf:
            kind = "PartialObjectMetadataList" if "PartialObjectMetadataList" in request.accept else "PodList"
            return Reply(body=_encode_list(kind, items, metadata), content="application/vnd.kubernetes.protobuf")
        api_version, kind = KINDS[resource]
        return _json({"kind": f"{kind}List", "apiVersion": api_version, "metadata": metadata, "items": items})

    def _find_page(self, request: Request, resource: str, namespace: str) -> tuple[int, list[Object]]:
        if token := request.query.get("continue"):
            if token not in self._pages:
                raise RefusedError(410, "Expired", "The provided continue parameter is too old")
            return self._pages[token]
        version = int(request.query.get("resourceVersion") or 0)
        if version > self.version:
            raise RefusedError(504, "Timeout", f"Too large resource version: {version}, current: {self.version}", 1)
        if 0 < version < self.forgotten:
            raise RefusedError(410, "Expired", f"The resourceVersion for the provided list is too old: {version}")
        matches = _make_filter(request)
        found = sorted(self._objects[resource].items())
        # A list as of a version is asked for only with a name that no object has.
        items = [item for _, item in found if _is_in(item, namespace) and matches(item)]
        return version or self.version, items

    def _watch(self, request: Request, resource: str, namespace: str) -> Reply:
        content = "application/vnd.kubernetes.protobuf;stream=watch" if request.is_protobuf else "application/json"
        return Reply(content=content, watch=Watch(self, request, resource, namespace))

    def ignores(self, reply: Reply) -> bool:
        """Say whether a reply is never sent."""
        is_ignored = reply.watch is not None and self.unanswered > 0
        self.unanswered -= is_ignored
        return is_ignored

    def _patch(self, request: Request, resource: str, namespace: str, name: str) -> Object:
        body = json.loads(request.body)
        found = self._demand(resource, namespace, name)
        metadata = body.get("metadata", {})
        if resource == PODS and self.conflicts:
            self.conflicts -= 1
            raise _make_conflict(resource, name)
        # Of a custom resource's status the API server ignores the UID, and takes its version for a condition.
        if resource == PODS and metadata.get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
            raise RefusedError(422, "Invalid", f'Pod "{name}" is invalid: metadata.uid: field is immutable')
        if (
            metadata.get("resourceVersion", found["metadata"]["resourceVersion"])
            != found["metadata"]["resourceVersion"]
        ):
            raise RefusedError(
                409, "Conflict", f'Operation cannot be fulfilled on {resource} "{name}": it was modified'
            )
        merge = _merge_conditions if resource == PODS else _merge
        return self.update(resource, namespace, name, lambda item: merge(item.setdefault("status", {}), body["status"]))

    def _post_event(self, request: Request) -> Reply:
        event = json.loads(request.body)
        self.events.append(event)
        return _json(event)


def _make_conflict(resource: str, name: str) -> RefusedError:
    return RefusedError(409, "Conflict", f'Operation cannot be fulfilled on {resource} "{name}": it was modified')


def timestamp() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_status(error: RefusedError) -> Object:
    """Return what the API server refuses with."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": error.message,
        "reason": error.reason,
        "code": error.code,
    }


def encode(item: Object) -> bytes:
    """Write an object in Kubernetes' envelope."""
    if item.get("kind") == "Status":
        status = message_class("Status")(message=item["message"], reason=item["reason"], code=item["code"])
        return _wrap(status)
    if "uid" not in item["metadata"]:  # a bookmark's
        pod = message_class("Pod")()
        pod.metadata.resourceVersion = item["metadata"]["resourceVersion"]
        return _wrap(pod)
    return _wrap(read_pod(item))


def _wrap(message: Any) -> bytes:
    return MAGIC + bytes(message_class("Unknown")(raw=message.SerializeToString()).SerializeToString())


def _encode_list(kind: str, items: list[Object], metadata: Object) -> bytes:
    page = message_class(kind)()
    page.metadata.resourceVersion = metadata["resourceVersion"]
    page.metadata.token = metadata.get("continue", "")
    for item in items:
        if kind == "PodList":
            page.items.add().CopyFrom(read_pod(item))
        else:
            identity = page.items.add().metadata
            for name in ("name", "namespace", "uid", "resourceVersion"):
                setattr(identity, name, item["metadata"][name])
    return _wrap(page)


def read_request(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Request:
    """Read a request from its parts."""
    parts = urlsplit(target)
    return Request(method, parts.path, dict(parse_qsl(parts.query)), headers, body)


def _json(item: Object) -> Reply:
    return Reply(body=json.dumps(item).encode())


def _verb(request: Request, rest: list[str]) -> str:
    if request.method != "GET":
        return {"PATCH": "patch", "POST": "create"}[request.method]
    return "get" if rest else ("watch" if "watch" in request.query else "list")


def _is_in(item: Object, namespace: str) -> bool:
    return not namespace or item["metadata"]["namespace"] == namespace


def _make_filter(request: Request) -> Callable[[Object], bool]:
    """Return what says whether an object meets the selectors of a request: `a`, `a=b`, and a name."""
    labels = [each.partition("=") for each in request.query.get("labelSelector", "").split(",") if each]
    name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")

    def matches(item: Object) -> bool:
        metadata = item["metadata"]
        held = metadata.get("labels") or {}
        has_labels = all(
            held.get(label, WHOLE) == (value if sign else held.get(label)) for label, sign, value in labels
        )
        return has_labels and name in ("", metadata["name"])

    return matches


def _with_version(item: Object, version: int) -> Object:
    """Return an object as a watch tells it; that of a deletion has the deletion's version."""
    if item["metadata"]["resourceVersion"] == str(version):
        return item
    return {**item, "metadata": {**item["metadata"], "resourceVersion": str(version)}}


def _merge(into: Object, change: Mapping[str, Any]) -> None:
    """Merge as RFC 7386 says."""
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _merge_conditions(status: Object, change: Mapping[str, Any]) -> None:
    """Merge conditions by their type, as a strategic merge patch does."""
    held = status.setdefault("conditions", [])
    for condition in change["conditions"]:
        known = next((each for each in held if each["type"] == condition["type"]), None)
        if known is None:
            held.append(dict(condition))
        else:
            known |= condition


def _group(name: str, version: str) -> Object:
    offered = {"groupVersion": f"{name}/{version}", "version": version}
    return {"kind": "APIGroup", "name": name, "versions": [offered], "preferredVersion": offered}


def _resources(group_version: str, resources: list[tuple[str, str, list[str]]]) -> Object:
    return {
        "kind": "APIResourceList",
        "groupVersion": group_version,
        "resources": [
            {
                "name": name,
                "singularName": kind.lower(),
                "namespaced": kind not in CLUSTER_SCOPED,
                "kind": kind,
                "verbs": verbs,
            }
            for name, kind, verbs in resources
        ],
    }
