"""A small, fast client of the Kubernetes API for tests: objects are plain dicts, errors say what the server said.

It knows just enough to find an object's path from its apiVersion and kind. The product has a client of its own; tests
that used that one as well could not see its mistakes.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self
from urllib.parse import urlencode

import urllib3

Object = dict[str, Any]
CLUSTER_SCOPED = frozenset(
    {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Namespace",
        "Node",
        "PriorityClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
)
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
STRATEGIC = "application/strategic-merge-patch+json"
TIMEOUT_SECONDS = 30.0
# Arbitrary; the API server itself tries a patch five times before it says that there is a conflict.
PATCH_TRIES = 10
# A server that has just been given a CRD says 429 and when to come again, which every client obeys.
PATIENT = urllib3.Retry(
    connect=False, read=False, redirect=False, status=10, status_forcelist={429}, allowed_methods=None
)


class ApiError(Exception):
    """The API server refused; `status` is its HTTP code and the message its own words."""

    def __init__(self, status: int, method: str, path: str, message: str) -> None:
        super().__init__(f"{method} {path}: {status} {message}")
        self.status = status


def object_path(api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
    """The path of one object, or without a name of all objects of its kind (in one namespace or everywhere)."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
    scope = f"/namespaces/{namespace}" if namespace and kind not in CLUSTER_SCOPED else ""
    return f"{root}{scope}/{plural}" + (f"/{name}" if name else "")


def path_of(item: Object, *, collection: bool = False) -> str:
    """The path of an object as given; namespace "default" where it names none."""
    meta = item["metadata"]
    name = "" if collection else meta["name"]
    return object_path(item["apiVersion"], item["kind"], meta.get("namespace", "default"), name)


class WatchStream:
    """Events of one watch as (type, object); close() may be called from another thread and ends the iteration."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._is_closed = False

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        rest = b""
        try:
            for chunk in self._response.stream(65536):
                if self._is_closed:  # a TLS socket that was shut down gives what is encrypted
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    yield event["type"], event["object"]
        except urllib3.exceptions.HTTPError:
            return
        finally:
            self._response.close()  # by hand: the garbage collector may find the socket first and complain

    def close(self) -> None:
        """End the iteration, also while it waits."""
        self._is_closed = True
        with contextlib.suppress(OSError, ValueError):  # the server may have closed it first, or the iteration ended
            self._response.shutdown()


class KubernetesApi:
    """Calls one API server with one token; safe for use from many threads."""

    def __init__(self, url: str, token: str = "", ca: str | None = None) -> None:
        self.url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = urllib3.PoolManager(ca_certs=ca, retries=PATIENT, maxsize=32, timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every idle connection."""
        self._pool.clear()

    def call(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        """Make one call and return the object in its answer; raise ApiError when it is refused."""
        headers = self._headers | {"Content-Type": kind}
        data = json.dumps(body).encode() if body is not None else None
        answer = self._pool.request(method, self.url + path, body=data, headers=headers)
        if answer.status >= 400:  # noqa: PLR2004 (where HTTP's errors begin)
            raise ApiError(answer.status, method, path, answer.data.decode(errors="replace"))
        content: Object = json.loads(answer.data) if answer.headers.get("Content-Type", "").endswith("json") else {}
        return content

    def is_ready(self) -> bool:
        """Whether the server says so itself."""
        try:
            self.call("GET", "/readyz")
        except (urllib3.exceptions.HTTPError, ApiError):
            return False
        return True

    def get(self, api_version: str, kind: str, name: str, namespace: str = "default") -> Object:
        """Return one object."""
        return self.call("GET", object_path(api_version, kind, namespace, name))

    def find(self, api_version: str, kind: str, name: str, namespace: str = "default") -> Object | None:
        """Return one object, None where there is none."""
        try:
            return self.get(api_version, kind, name, namespace)
        except ApiError as error:
            if error.status == 404:  # noqa: PLR2004 (Not Found)
                return None
            raise

    def list(self, api_version: str, kind: str, namespace: str = "", **query: str) -> Object:
        """Return a whole list object; without a namespace of all namespaces."""
        return self.call("GET", f"{object_path(api_version, kind, namespace)}?{urlencode(query)}")

    def create(self, item: Object) -> Object:
        """Create an object and return it as stored."""
        return self.call("POST", path_of(item, collection=True), item)

    def apply(self, item: Object) -> Object:
        """Create the object or change it to this, by server-side apply."""
        return self.call("PATCH", path_of(item) + "?fieldManager=testbed&force=true", item, APPLY)

    def patch(self, item: Object, change: Object, subresource: str = "", kind: str = MERGE) -> Object:
        """Patch the named object, or its subresource such as "status".

        It asks for no version, so retrying where the API server has given up against other writers.
        """
        path = path_of(item) + (f"/{subresource}" if subresource else "")
        for _ in range(PATCH_TRIES - 1):
            try:
                return self.call("PATCH", path, change, kind)
            except ApiError as error:
                if error.status != 409:  # noqa: PLR2004 (Conflict)
                    raise
        return self.call("PATCH", path, change, kind)

    def delete(self, item: Object, grace_seconds: int | None = None) -> None:
        """Delete an object; one that is gone already is no error."""
        options: Object = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        try:
            self.call("DELETE", path_of(item), options)
        except ApiError as error:
            if error.status != 404:  # noqa: PLR2004 (Not Found)
                raise

    def watch(self, api_version: str, kind: str, resource_version: str, **query: str) -> WatchStream:
        """Open a watch from a resource version on, over all namespaces; silence beyond TIMEOUT_SECONDS ends it."""
        wanted = {"watch": "true", "resourceVersion": resource_version, "allowWatchBookmarks": "true", **query}
        path = f"{object_path(api_version, kind)}?{urlencode(wanted)}"
        answer = self._pool.request("GET", self.url + path, headers=self._headers, preload_content=False)
        if answer.status >= 400:  # noqa: PLR2004 (where HTTP's errors begin)
            raise ApiError(answer.status, "WATCH", path, answer.data.decode(errors="replace"))
        return WatchStream(answer)


def make_kubeconfig(url: str, ca: str, token: str, namespace: str = "default") -> Mapping[str, Any]:
    """The content of a kubeconfig for one server and one token; JSON is YAML, so it may be dumped as such."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": {"server": url, "certificate-authority": ca}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user", "namespace": namespace}}],
        "current-context": "testbed",
    }
