"""Several processes at one address: the key stays until the last of them has gone, and readers see no gap."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from grpc_etcd import Endpoint, Policy, Registry, Retry, RetryOn
from grpc_etcd.etcd import Changed, Deleted, Etcd, News
from grpc_etcd.registration.registrar import State
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import say_hello

from .conftest import ENDPOINT, KEY, SERVICE, Admin

PROCESS_KEYS = b"/grpc-etcd/registered-by" + KEY


@contextmanager
def watching(admin: Admin) -> Iterator[list[News]]:
    """Collect all that happens to the key."""
    seen: list[News] = []
    watch = admin.etcd.list_watch(KEY)
    reader = threading.Thread(target=lambda: seen.extend(watch), daemon=True)
    reader.start()
    wait_until(lambda: seen, "the key is watched")
    yield seen
    watch.close()
    reader.join(30)


def deletions(seen: list[News]) -> int:
    return sum(isinstance(event, Deleted) for news in seen if isinstance(news, Changed) for event in news.events)


def holder(admin: Admin) -> int:
    record = admin.etcd.get(KEY)
    return record.lease if record else 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_key_is_handed_on_without_a_gap_until_the_last_one_leaves(admin: Admin, order: tuple[int, ...]) -> None:
    registries = [admin.registry() for _ in range(3)]
    registrations = []
    for registry in registries:
        registrations.append(registry.register(ENDPOINT, allow_unroutable=True))
        assert registrations[-1].wait(30)
    wait_until(lambda: all(each.status.state is State.REGISTERED for each in registrations), "all are registered")
    value = admin.record(KEY).value
    with watching(admin) as seen:
        for number in order[:-1]:
            assert registrations[number].unregister(30)
            assert admin.record(KEY).value == value
            registries[number].close()
            assert admin.record(KEY).value == value
            assert holder(admin) in admin.etcd.leases()
        assert deletions(seen) == 0
        assert registrations[order[-1]].wait(30)
        registries[order[-1]].close()
        wait_until(lambda: deletions(seen) == 1, "the last one takes the key along")
    assert admin.etcd.get_prefix(b"/grpc-etcd/registered-by").records == ()


def test_each_leaves_what_it_wants_itself_and_what_an_admin_has_edited_goes_along(admin: Admin) -> None:
    with admin.registry() as first, admin.registry() as second:
        old = first.register(Endpoint(name=SERVICE, address=ENDPOINT.address, weight=5), allow_unroutable=True)
        assert old.wait(30)
        new = second.register(Endpoint(name=SERVICE, address=ENDPOINT.address, weight=7), allow_unroutable=True)
        assert new.wait(30)
        wait_until(lambda: old.status.state is State.TAKEN, "another weight is no shared registration")
        assert new.unregister(30)
        assert json.loads(admin.record(KEY).value)["weight"] == 5
        assert old.wait(30)
        again = second.register(Endpoint(name=SERVICE, address=ENDPOINT.address, weight=7), allow_unroutable=True)
        assert again.wait(30)
        record = admin.record(KEY)
        edited = json.loads(record.value) | {"enable": False}
        admin.etcd.put(KEY, json.dumps(edited).encode(), lease=record.lease)
        wait_until(lambda: again.wait(0), "the edit is taken over")
        assert again.unregister(30)
        assert json.loads(admin.record(KEY).value)["enable"] is False
        assert old.wait(30)
        assert json.loads(admin.record(KEY).value)["enable"] is False


def edit(admin: Admin, **changes: object) -> None:
    record = admin.record(KEY)
    admin.etcd.put(KEY, json.dumps(json.loads(record.value) | changes).encode(), lease=record.lease)


def is_enabled(admin: Admin) -> bool:
    record = admin.etcd.get(KEY)
    return record is not None and json.loads(record.value)["enable"] is True


def test_what_an_admin_edits_holds_for_all_who_come_and_go(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    with admin.registry() as first, admin.registry() as second, admin.registry() as third:
        old = first.register(ENDPOINT, allow_unroutable=True)
        assert old.wait(30)
        assert second.register(ENDPOINT, allow_unroutable=True).wait(30)
        edit(admin, enable=False)
        young = third.register(ENDPOINT, allow_unroutable=True)
        assert young.wait(30)
        assert not is_enabled(admin), "a worker that is restarted does not end what an admin began"
        second.close()
        wait_until(
            lambda: b'"enable":false' in first.registrar.driver.ask(lambda keeper: keeper.value(KEY)), "it is heard"
        )
        admin.etcd.revoke(holder(admin))
        admin.wait_for(lambda record: record)
        wait_until(lambda: old.wait(0) and young.wait(0), "both are registered")
        assert not is_enabled(admin), "nor does one that is killed"
        edit(admin, enable=True)
        wait_until(lambda: old.wait(0) and young.wait(0), "both follow the admin")
        assert young.unregister(30)
        assert old.wait(30)
        assert is_enabled(admin)
        edit(admin, enable=False)
        again = third.register(ENDPOINT, allow_unroutable=True)
        assert again.wait(30)
        for each in (old, again):
            each.update(enable=True)
        wait_until(lambda: is_enabled(admin) and old.wait(0) and again.wait(0), "the program's own word")
    assert "taken by another process" not in caplog.text


def test_one_that_is_killed_is_followed_by_the_other_as_soon_as_its_lease_ends(admin: Admin) -> None:
    with admin.registry() as first, admin.registry() as second:
        survivor = first.register(ENDPOINT, allow_unroutable=True)
        assert survivor.wait(30)
        assert second.register(ENDPOINT, allow_unroutable=True).wait(30)
        admin.etcd.revoke(holder(admin))
        admin.wait_for(lambda record: record)
        assert survivor.wait(30)


def test_a_lost_process_key_is_put_back(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(30)
    (record,) = admin.etcd.get_prefix(PROCESS_KEYS).records
    admin.etcd.delete(record.key)
    again = admin.wait_for(lambda found: found, record.key)
    assert again
    assert (again.value, again.lease) == (record.value, record.lease)
    admin.etcd.revoke(record.lease)
    wait_until(lambda: admin.etcd.get(KEY) and len(admin.etcd.get_prefix(PROCESS_KEYS).records) == 1, "a new lease's")
    assert admin.etcd.get_prefix(PROCESS_KEYS).records[0].lease == holder(admin)


WORKER = """
import sys
from concurrent import futures
import grpc, grpc_etcd
from testbed.greeter import METHOD, encode_text
endpoints, address = sys.argv[1:]
registry = grpc_etcd.Registry(endpoints)
native = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 1)])
service, method = METHOD.strip("/").split("/")
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: encode_text("hello"))
native.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
server = registry.bind(native, "greeter", drain_seconds=0.2, allow_unroutable=True)
server.add_insecure_port(address)
server.start()
assert server.registrations[0].wait(60)
grpc_etcd.stop_on_sigterm(server, 5)
print("registered", flush=True)
server.wait_for_termination()
registry.close()
"""


class Callers:
    """Call the service from several threads, and count how the calls end."""

    def __init__(self, registry: Registry, *, wait_for_ready: bool = False) -> None:
        self.results: Counter[str] = Counter()
        self._wait_for_ready = wait_for_ready
        self._ended = threading.Event()
        self._channel = registry.insecure_channel(SERVICE)
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(2)]
        for each in self._threads:
            each.start()

    def _call(self) -> None:
        hello: Callable[..., str] = say_hello(self._channel)
        while not self._ended.is_set():
            try:
                hello("you", timeout=30, wait_for_ready=self._wait_for_ready)
                self.results["ok"] += 1
            except grpc.RpcError as error:
                self.results[f"{error.code().name}: {error.details()}"] += 1
            self._ended.wait(0.001)

    def close(self) -> None:
        self._ended.set()
        for each in self._threads:
            each.join(60)
        self._channel.close()


@pytest.fixture
def workers(etcd: EtcdServer) -> Iterator["Workers"]:
    workers = Workers(etcd.endpoints, f"127.0.9.7:{free_port('127.0.9.7')}")
    yield workers
    workers.kill()


class Workers:
    """Processes that serve at one address."""

    def __init__(self, endpoints: str, address: str) -> None:
        self.address = address
        self._endpoints = endpoints
        self._running: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, self._endpoints, self.address],
            stdout=subprocess.PIPE, text=True, cwd=Path.cwd(),
        )  # fmt: skip
        self._running.append(worker)
        assert worker.stdout
        assert worker.stdout.readline().strip() == "registered"

    def stop(self, number: int) -> None:
        worker = self._running.pop(number)
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)
        assert worker.returncode == 0

    def kill(self) -> None:
        for worker in self._running:
            worker.kill()
            worker.communicate(timeout=60)


@pytest.mark.faults
def test_twenty_workers_of_one_address_end_and_no_call_fails(etcd: EtcdServer, workers: Workers) -> None:
    """But for those whose connection Linux resets: it gives what a worker has not accepted yet to no other."""
    key = f"/jupiter/{SERVICE}/providers/grpc://{workers.address}".encode()
    workers.start()
    workers.start()
    with Registry(etcd.endpoints) as registry, Etcd(etcd.endpoints) as client:
        # A grpcio server that stops cancels calls that it has not taken from C core yet, with or without a registry.
        registry.configure(SERVICE, Policy(retry=Retry(attempts=5, retry_on=(RetryOn.CANCELLED,))))
        registry.wait_for_endpoints(SERVICE, 60)
        before = client.get(key)
        assert before
        callers, patient = Callers(registry), Callers(registry, wait_for_ready=True)
        wait_until(lambda: callers.results["ok"] > 50 and patient.results["ok"] > 50, "calls are answered")
        for number in range(20):
            workers.stop(number % 2)
            after = client.get(key)
            assert after, "the other worker serves on"
            assert after.create_revision == before.create_revision, "it was never away"
            workers.start()
        for each in (callers, patient):
            each.close()
        assert set(patient.results) == {"ok"}, patient.results
        assert all("Connection reset by peer" in each for each in callers.results.keys() - {"ok"}), callers.results
        workers.stop(0)
        workers.stop(0)
        assert client.get(key) is None
