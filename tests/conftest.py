"""Fixtures that every tier shares; each process they start has ended when the session has."""

from collections.abc import Generator, Iterator

import pytest

from testbed.etcd import EtcdServer
from testbed.process import running_processes


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log's end of each running process beside a failed test."""
    report = yield
    if report.failed:
        for process in running_processes():
            report.sections.append((f"log of {process.name}", process.log_tail()))
    return report
