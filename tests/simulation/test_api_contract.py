"""What the model of the API server promises, shown on it and on a real one alike, so that the model is honest."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import pytest
import yaml

from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.kube.pages import Event, Page
from testbed.apiserver import ApiServer
from testbed.conditions import existing, until
from testbed.kubernetes_api import STRATEGIC
from testbed.models.api_server import KINDS, PODS, SERVICES, TARGETS, ApiServerModel
from testbed.models.http_channel import ModelConnector
from testbed.models.wires import Wire

CRD = Path(__file__).parents[2] / "crds" / "grpcservices.yaml"
GATE = "grpc-etcd.dev/registered"
Object = dict[str, Any]
TLS_SECONDS = 0.3  # within which connections of a session that was closed end
numbers = count(1)


class World(Protocol):
    """An API server of either kind, and what kubelets and owners do."""

    def session(self) -> aiohttp.ClientSession: ...
    @property
    def url(self) -> str: ...
    def create(self, item: Object) -> Object: ...
    def set_status(self, pod: str, status: Object) -> Object: ...
    def label(self, pod: str, labels: Object) -> None: ...
    def delete(self, resource: str, name: str) -> None: ...


class RealWorld:
    def __init__(self, server: ApiServer) -> None:
        self._server, self.url = server, server.url

    def session(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cafile=str(self._server.authority.ca))
        connector = aiohttp.TCPConnector(ssl=context)
        return aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {self._server.token}"})

    def create(self, item: Object) -> Object:
        return self._server.client.create(item)

    def set_status(self, pod: str, status: Object) -> Object:
        return self._server.client.patch(self._item(PODS, pod), {"status": status}, "status", STRATEGIC)

    def label(self, pod: str, labels: Object) -> None:
        self._server.client.patch(self._item(PODS, pod), {"metadata": {"labels": labels}})

    def delete(self, resource: str, name: str) -> None:
        self._server.client.delete(self._item(resource, name), grace_seconds=0)

    def _item(self, resource: str, name: str) -> Object:
        version, kind = KINDS[resource]
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "default"}}


class ModelWorld:
    url = "https://model"

    def __init__(self) -> None:
        self.model = ApiServerModel()

    def session(self) -> aiohttp.ClientSession:
        wire = Wire(self.model.wire)
        return aiohttp.ClientSession(connector=ModelConnector(self.model, wire), headers={"Authorization": "Bearer me"})

    def create(self, item: Object) -> Object:
        (resource,) = (each for each, (_, kind) in KINDS.items() if kind == item["kind"])
        return self.model.create(resource, item)

    def set_status(self, pod: str, status: Object) -> Object:
        return self.model.update(PODS, "default", pod, lambda item: item.setdefault("status", {}).update(status))

    def label(self, pod: str, labels: Object) -> None:
        def change(item: Object) -> None:
            held = item["metadata"].setdefault("labels", {})
            held.update(labels)
            for name in [name for name, value in labels.items() if value is None]:
                held.pop(name)

        self.model.update(PODS, "default", pod, change)

    def delete(self, resource: str, name: str) -> None:
        self.model.delete(resource, "default", name)


@pytest.fixture(scope="module")
def apiserver() -> Iterator[ApiServer]:
    with ApiServer.start() as server:
        server.client.create(yaml.safe_load(CRD.read_text()))
        yield server


@pytest.fixture(params=["model", "real"])
async def world(request: pytest.FixtureRequest) -> World:
    if request.param == "model":
        return ModelWorld()
    server: ApiServer = request.getfixturevalue("apiserver")
    return RealWorld(server)


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    client = Client(world.url, world.session())
    await until_served(client)
    yield client
    await client.close()
    await asyncio.sleep(TLS_SECONDS)


async def until_served(client: Client) -> None:
    async with asyncio.timeout(60):
        while not (await client.crd_state()).served:  # noqa: ASYNC110  of another process
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def opened(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    async with world.session() as session:
        yield session
    await asyncio.sleep(TLS_SECONDS)


@pytest.fixture
def name() -> str:
    """A name, and a label, that no other test uses."""
    return f"t{next(numbers)}"


def make_pod(name: str, app: str) -> Object:
    container = {"name": "main", "image": "none", "ports": [{"name": "grpc", "containerPort": 9000}]}
    metadata = {"name": name, "namespace": "default", "labels": {"app": app}, "annotations": {"note": "x"}}
    spec = {"nodeName": "node-1", "containers": [container], "readinessGates": [{"conditionType": GATE}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def make_service(name: str) -> Object:
    spec = {"selector": {"matchLabels": {"app": name}}}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": metadata, "spec": spec}


NEW = {"observedGeneration": -1}  # the status that the CRD gives a GrpcService
RUNNING = {"phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]}


async def listed(client: Client, selector: str) -> tuple[list[Any], str]:
    pods, version = [], ""
    async for page in client.list_pods("", selector):
        pods += page.items
        version = page.version
    return pods, version


async def test_a_pod_is_listed_as_it_is(world: World, client: Client, name: str) -> None:
    made = world.create(make_pod(name, name))
    world.set_status(name, RUNNING)
    ((pod,), version) = await listed(client, f"app={name}")
    assert (pod.metadata.name, pod.metadata.namespace, pod.metadata.uid) == (name, "default", made["metadata"]["uid"])
    assert dict(pod.metadata.labels) == {"app": name}
    assert dict(pod.metadata.annotations) == {"note": "x"}
    assert pod.metadata.creationTimestamp.seconds > 0
    assert pod.spec.nodeName == "node-1"
    assert [gate.conditionType for gate in pod.spec.readinessGates] == [GATE]
    assert [(port.name, port.containerPort) for port in pod.spec.containers[0].ports] == [("grpc", 9000)]
    assert (pod.status.phase, pod.status.podIP) == ("Running", "10.0.0.7")
    assert ("Ready", "True") in [(each.type, each.status) for each in pod.status.conditions]
    assert int(version) >= int(pod.metadata.resourceVersion)
    assert await client.read_pod("default", name) == pod
    assert await client.read_pod("default", "nobody") is None
    assert await client.uid_of("pods", "default", name) == pod.metadata.uid
    assert await client.uid_of("pods", "default", "nobody") is None
    assert await client.is_selected("default", name, pod.metadata.uid, f"app={name}")
    assert not await client.is_selected("default", name, pod.metadata.uid, "app=other")
    assert int(await client.probe("pods", "")) >= int(version)


async def test_a_long_list_comes_in_pages_of_one_version(world: World, client: Client, name: str) -> None:
    for number in range(260):
        world.create(make_pod(f"{name}-{number:03d}", name))
    pages, seen = list[Page[Any]](), list[str]()
    async for page in client.list_pods("", f"app={name}"):
        if not pages:
            world.delete(PODS, f"{name}-259")
            world.create(make_pod(f"{name}-260", name))
        pages.append(page)
        seen += [pod.metadata.name for pod in page.items]
    assert [len(page.items) for page in pages] == [250, 10]
    assert seen == [f"{name}-{number:03d}" for number in range(260)]
    assert len({page.version for page in pages}) == 1
    assert len([each async for each in client.list_seen("pods", (), f"app={name}")]) == 260


@contextlib.asynccontextmanager
async def watching(client: Client, selector: str, version: str) -> AsyncIterator[list[Event]]:
    told: list[Event] = []

    async def collect() -> None:
        async for event in client.watch_pods("", selector, version):
            told.append(event)  # noqa: PERF401  they come one by one

    task = asyncio.create_task(collect())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_watch_tells_each_change_from_a_version_on(world: World, client: Client, name: str) -> None:
    _, version = await listed(client, f"app={name}")
    made = world.create(make_pod(name, name))
    world.create(make_pod(f"{name}-other", "other"))
    changed = world.set_status(name, RUNNING)
    async with watching(client, f"app={name}", version) as told:
        await until(lambda: len(told) == 2)
        world.label(name, {"app": None})  # it leaves the selector
        world.label(name, {"app": name})
        world.delete(PODS, name)
        await until(lambda: [event.kind for event in told].count("DELETED") == 2)
    kinds = [event.kind for event in told]
    # A kubelet that is asked to end a Pod at once is told so before the Pod is gone.
    assert kinds[:4] == ["ADDED", "MODIFIED", "DELETED", "ADDED"]
    assert set(kinds[4:-1]) <= {"MODIFIED"}
    assert [event.version for event in told[:2]] == [
        made["metadata"]["resourceVersion"],
        changed["metadata"]["resourceVersion"],
    ]
    versions = [int(event.version) for event in told]
    assert versions == sorted(set(versions))
    assert all(event.pod.metadata.uid == made["metadata"]["uid"] for event in told)
    async with watching(client, f"app={name}", told[2].version) as again:
        await until(lambda: bool(again) and again[-1].kind == "DELETED")
    assert [event.version for event in again] == [event.version for event in told[3:]]


async def test_a_watch_from_a_version_that_is_forgotten_is_told_410() -> None:
    """Of the model alone: a real API server says so of what was before its start, or does not fit into its cache."""
    world = ModelWorld()
    world.create(make_pod("one", "one"))
    world.model.compact()
    client = Client(world.url, world.session())
    with pytest.raises(ApiError) as caught:
        async for _ in client.watch_pods("", "", "1"):
            pass
    await client.close()
    assert caught.value.status == 410


async def test_a_list_as_of_a_version_of_nothing(world: World, client: Client, name: str) -> None:
    world.create(make_pod(name, name))
    _, version = await listed(client, "")
    world.create(make_pod(f"{name}-2", name))
    query = {"resourceVersion": version, "resourceVersionMatch": "Exact", "fieldSelector": "metadata.name=_"}
    async with opened(world) as session, session.get(f"{world.url}/api/v1/pods", params=query) as reply:
        found = await reply.json()
    assert (found["kind"], found["items"], found["metadata"]["resourceVersion"]) == ("PodList", [], version)


async def test_a_json_watch_tells_of_grpcservices(world: World, client: Client, name: str) -> None:
    version = await client.probe("grpcservices", "")
    made = world.create(make_service(name))
    url = f"{world.url}/apis/grpc-etcd.dev/v1alpha1/grpcservices?watch=true&resourceVersion={version}"
    async with opened(world) as session, session.get(url) as reply:
        told = json.loads(await reply.content.readline())
        assert (told["type"], told["object"]["metadata"]["uid"]) == ("ADDED", made["metadata"]["uid"])
        assert told["object"]["spec"]["layouts"] == ["jupiter"]  # a default of the schema
        assert told["object"]["metadata"]["generation"] == 1
        await client.patch_service_status(parse_service(made), {"registryName": name})
        told = json.loads(await reply.content.readline())
        assert (told["type"], told["object"]["status"]) == ("MODIFIED", {**NEW, "registryName": name})
        assert told["object"]["metadata"]["generation"] == 1
        world.delete(SERVICES, name)
        assert json.loads(await reply.content.readline())["type"] == "DELETED"


async def test_a_status_is_written_to_that_object_alone(world: World, client: Client, name: str) -> None:
    made = parse_service(world.create(make_service(name)))
    written = await client.patch_service_status(made, {"endpoints": {"ready": 1}})
    version = written["metadata"]["resourceVersion"]
    assert int(version) > int(made.resource_version)
    again = await client.patch_service_status(parse_service(written), {"endpoints": {"ready": 1}})
    assert again["metadata"]["resourceVersion"] == version  # nothing has changed
    with pytest.raises(ApiError) as caught:  # another version by now, and one to which it may not be written
        await client.patch_service_status(made, {"endpoints": {"ready": 2}}, lambda _found: None)
    assert caught.value.status == 409
    written = await client.patch_service_status(made, {"endpoints": {"ready": 2}})  # of any other it is
    assert (written["metadata"]["uid"], written["status"]) == (made.uid, {**NEW, "endpoints": {"ready": 2}})
    with pytest.raises(ApiError) as caught:
        await client.patch_service_status(replace(made, uid="another"), {"endpoints": {"ready": 3}})
    assert caught.value.status == 409
    # Without a version another UID is no hindrance: the API server keeps a custom resource's metadata as they are.
    written = await client.patch_service_status(replace(made, uid="another", resource_version=""), {"endpoints": None})
    assert (written["metadata"]["uid"], written["status"]) == (made.uid, NEW)
    with pytest.raises(ApiError) as caught:
        await client.patch_service_status(replace(made, name="nobody"), {"endpoints": {"ready": 2}})
    assert caught.value.status == 404
    assert existing(await client.read("grpcservices", "default", name))["status"] == NEW
    assert await client.read("grpcservices", "default", "nobody") is None


async def test_a_gate_is_opened_beside_other_conditions(world: World, client: Client, name: str) -> None:
    uid = world.create(make_pod(name, name))["metadata"]["uid"]
    world.set_status(name, RUNNING)
    for value in ("False", "True"):
        await client.open_gate("default", name, uid, {"type": GATE, "status": value})
    pod = existing(await client.read("pods", "default", name))
    held = {each["type"]: each["status"] for each in pod["status"]["conditions"]}
    assert (held["Ready"], held[GATE]) == ("True", "True")
    with pytest.raises(ApiError) as caught:
        await client.open_gate("default", name, "another", {"type": GATE, "status": "False"})
    assert caught.value.status == 422


async def test_what_is_served(client: Client) -> None:
    state = await client.crd_state()
    assert (state.served, state.terminating) == (True, False)
    assert len(await client.cluster_uid()) == 36


async def test_what_is_not_served(world: World) -> None:
    async with opened(world) as session, session.get(f"{world.url}/apis/nobody.dev/v1/things") as reply:
        assert reply.status == 404


async def test_services_are_listed_as_what_is_taken_of_them(world: World, client: Client, name: str) -> None:
    spec = {"selector": {"app": name}, "ports": [{"name": "grpc", "port": 80, "targetPort": "api"}]}
    metadata = {"name": name, "namespace": "default"}
    made = world.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    for namespace in ("", "default"):
        pages = [page async for page in client.list_services(namespace)]
        (found,) = [each for page in pages for each in page.items if each.name == name]
        assert (found.uid, found.namespace, found.port) == (made["metadata"]["uid"], "default", "api")
        assert found.selector.labels == (("app", name),)
        assert int(pages[-1].version) >= int(made["metadata"]["resourceVersion"])
    assert int(await client.probe(TARGETS, "default"))
    world.delete(TARGETS, name)
    assert name not in [each.name async for page in client.list_services("") for each in page.items]
