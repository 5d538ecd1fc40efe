"""Fixtures that every tier shares; each process they start has ended when the session has."""

import itertools
import signal
from collections.abc import Generator, Iterator
from http import HTTPStatus

import pytest

from testbed.apiserver import ApiServer
from testbed.etcd import EtcdServer
from testbed.examples import register_profiles
from testbed.kubelet import Kubelet
from testbed.kubernetes_api import ApiError, Object
from testbed.process import running_processes

# Hypothesis makes a failing example smaller for up to 300 seconds; the usual limit would hide what it found.
SHRINKING_SECONDS = 420

register_profiles()


def pytest_configure() -> None:
    # Under nohup, or in the background of a shell, signals are ignored, also by children, to which tests send them.
    # With a handler that does nothing that is so here, but children start as usual.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("hypothesis"):
            item.add_marker(pytest.mark.timeout(SHRINKING_SECONDS))


@pytest.fixture(scope="session")
def session_etcd() -> Iterator[EtcdServer]:
    """One etcd for all tests that leave it running; use `etcd`, which hands it out empty."""
    with EtcdServer.start() as server:
        yield server


@pytest.fixture
def etcd(session_etcd: EtcdServer) -> EtcdServer:
    """A running etcd without keys. A test that kills, freezes or restarts one takes `own_etcd`."""
    session_etcd.clear()
    return session_etcd


@pytest.fixture
def own_etcd() -> Iterator[EtcdServer]:
    """An etcd for this test alone, which it may kill, freeze and restart."""
    with EtcdServer.start() as server:
        yield server


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdServer]:
    """An etcd of three members for this test alone."""
    with EtcdServer.start(members=3) as server:
        yield server


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """One API server for all tests that leave it running; each test works in its own `namespace`."""
    with ApiServer.start() as server:
        yield server


@pytest.fixture
def own_apiserver() -> Iterator[ApiServer]:
    """An API server for this test alone, which it may kill, freeze and restart."""
    with ApiServer.start() as server:
        yield server


NAMESPACE_NUMBERS = itertools.count(1)
FAILURE_LOG_LINES = 12


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """A namespace for this test alone; when the test is over, no Pod and no GrpcService is left in any."""
    item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"test-{next(NAMESPACE_NUMBERS)}"}}
    yield str(apiserver.client.create(item)["metadata"]["name"])
    for version, kind in (("grpc-etcd.dev/v1alpha1", "GrpcService"), ("v1", "Pod")):
        for left in all_of(apiserver, version, kind):
            apiserver.client.delete({"apiVersion": version, "kind": kind, **left}, grace_seconds=0)


def all_of(server: ApiServer, version: str, kind: str) -> list[Object]:
    """Every object of a kind; none where the kind is not installed."""
    try:
        return list(server.client.list(version, kind)["items"])
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return []
        raise


@pytest.fixture
def kubelet(apiserver: ApiServer, namespace: str) -> Iterator[Kubelet]:
    """Makes Pods on the shared API server; give them `namespace`, which goes away after this."""
    assert namespace
    with Kubelet(apiserver) as plays:
        yield plays


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log's end of each running process beside a failed test."""
    report = yield
    if report.failed:
        for process in running_processes():
            report.sections.append((f"log of {process.name}", process.log_tail(FAILURE_LOG_LINES)))
    return report
