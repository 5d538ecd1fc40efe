"""How long a stop takes while etcd does not answer: one time for all of it, which is a setting."""

import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_etcd import CompoundRegistry, Endpoint, EtcdError, Registry
from grpc_etcd.registration.registrar import STOP_SECONDS
from grpc_etcd.registration.server import GRACE_SECONDS
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy

from .conftest import ENDPOINT, SERVICE

PASSWORD = "secret"  # noqa: S105 - of an etcd that lasts for one test
STOP = 8
# What ending a process and a thread may take on a busy machine, less than a third wait of this length.
SLACK = 7


def bound(registry: Registry | CompoundRegistry) -> grpc.Server:
    server = registry.bind(grpc.server(futures.ThreadPoolExecutor(1)), SERVICE, drain_seconds=1, allow_unroutable=True)
    server.add_insecure_port("127.0.9.8:0")
    server.start()
    return server


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["black_hole", "refuse"])
def test_deregistering_draining_and_closing_take_one_time_in_all(etcd: EtcdServer, fault: str) -> None:
    with TcpProxy.start(etcd.endpoints) as proxy:
        registry = Registry(proxy.address, stop_seconds=STOP)
        server = bound(registry)
        also = registry.register(ENDPOINT, allow_unroutable=True)
        assert also.wait(30)
        getattr(proxy, fault)()
        began = time.monotonic()
        server.stop(10).wait()
        assert not also.unregister()
        registry.close()
        assert time.monotonic() - began < 2 * STOP + SLACK
        began = time.monotonic()
        registry.close()
        assert time.monotonic() - began < STOP / 2


@pytest.mark.faults
def test_a_log_in_that_is_not_answered_does_not_hold_up_the_end(own_etcd: EtcdServer) -> None:
    admin = own_etcd.enable_auth(PASSWORD)
    own_etcd.add_user("server", PASSWORD, ["/jupiter/", "/grpc-etcd/"], admin=admin)
    with TcpProxy.start(own_etcd.endpoints) as proxy:
        registry = Registry(proxy.address, user="server", password=PASSWORD, stop_seconds=STOP)
        assert registry.register(ENDPOINT, allow_unroutable=True).wait(30)
        registry.wait_for_endpoints(SERVICE, 30)
        proxy.black_hole()
        with pytest.raises(EtcdError):  # which makes the token doubtful: all that is open logs in again
            registry.read_endpoints(SERVICE)
        wait_until(lambda: registry.stats()[SERVICE].error, "the outage is noticed")
        began = time.monotonic()
        registry.close()
        assert time.monotonic() - began < STOP + SLACK


def test_what_was_not_confirmed_is_not_waited_for_again(etcd: EtcdServer) -> None:
    with TcpProxy.start(etcd.endpoints) as proxy:
        registry = Registry(proxy.address, stop_seconds=20)
        registration = registry.register(ENDPOINT, allow_unroutable=True)
        assert registration.wait(30)
        proxy.refuse()
        wait_until(lambda: registration.status.fault, "the outage is noticed")
        assert not registration.unregister(0.5)
        hurried = Registry(proxy.address, stop_seconds=0.5)
        hurried.register(Endpoint(name=SERVICE, address="127.0.9.8:9999"), allow_unroutable=True)
        began = time.monotonic()
        hurried.close()
        assert time.monotonic() - began < 5
        proxy.heal()
        registry.close()


PROGRAM = """
import sys, time
from concurrent import futures
import grpc, grpc_etcd
how, endpoints, *more = sys.argv[1:]
registry = grpc_etcd.Registry(endpoints, stop_seconds=8)
server = registry.bind(grpc.server(futures.ThreadPoolExecutor(1)), "greeter", drain_seconds=1, allow_unroutable=True)
server.add_insecure_port("127.0.9.8:0")
server.start()
others = [grpc_etcd.Registry(endpoints, stop_seconds=8) for _ in range(4)]
for number, each in enumerate(others):
    each.register(grpc_etcd.Endpoint(name="greeter", address=f"127.0.9.8:{9000 + number}"), allow_unroutable=True)
print("ready", flush=True)
sys.stdin.readline()
if how == "stops":
    server.stop(5).wait()
    registry.close()
"""


@pytest.mark.faults
@pytest.mark.parametrize("how", ["stops", "just ends"])
def test_a_process_ends_within_that_time_whatever_it_has_registered(etcd: EtcdServer, how: str) -> None:
    with TcpProxy.start(etcd.endpoints) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how, proxy.address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd(),
        )  # fmt: skip
        assert process.stdout
        assert process.stdout.readline().strip() == "ready"
        proxy.black_hole()
        began = time.monotonic()
        process.communicate("end\n", timeout=60)
        # Five registries, one after another, would take 40 s.
        assert time.monotonic() - began < 2 * STOP + SLACK
        assert process.returncode == 0


def test_the_defaults_leave_room_in_the_30_seconds_of_kubernetes() -> None:
    assert STOP_SECONDS + GRACE_SECONDS + 5 <= 30


@pytest.mark.parametrize(
    "options", [{"stop_seconds": -1}, {"stop_seconds": "5"}, {"lease_ttl_seconds": 0}, {"lease_ttl_seconds": 10**12}]
)
def test_times_are_checked_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Registry(f"127.0.0.1:{free_port()}", **options)


def test_a_drain_that_leaves_no_time_to_deregister_is_refused_at_once() -> None:
    with Registry(f"127.0.0.1:{free_port()}") as registry, pytest.raises(ValueError, match="stop_seconds"):
        registry.bind(grpc.server(futures.ThreadPoolExecutor(1)), SERVICE, drain_seconds=6)
