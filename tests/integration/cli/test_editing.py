"""Endpoints of other processes, drained and weighed from the command line; those of Pods are refused."""

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import grpc_etcd
from grpc_etcd import Endpoint
from grpc_etcd.cli.connecting import Connection, connect
from grpc_etcd.cli.editing import edit_endpoint
from grpc_etcd.cli.printing import Failure
from grpc_etcd.inspect.reading import read_service
from grpc_etcd.registry.own import OwnerRecord, owner_key
from testbed.conditions import wait_until

from .conftest import CommandLine

ADDRESS = "10.0.0.9:9000"


@pytest.fixture
def registry(shell: CommandLine) -> Iterator[grpc_etcd.Registry]:
    with grpc_etcd.Registry(shell.endpoints) as registry:
        assert registry.register(Endpoint(name="greeter", address=ADDRESS, weight=100)).wait(30)
        yield registry


def read(shell: CommandLine) -> tuple[object, object, object]:
    (entry,) = shell.run_json("get", "greeter")
    return entry["weight"], entry["enable"], entry["lease"]


def test_a_server_is_drained_and_weighed_and_its_process_keeps_that(
    shell: CommandLine, registry: grpc_etcd.Registry
) -> None:
    _, _, lease = read(shell)
    assert lease
    assert "gets no new calls" in shell.run("drain", "greeter", ADDRESS)
    assert read(shell) == (100, False, lease)
    assert shell.run("set-weight", "greeter", ADDRESS, "25")
    assert read(shell) == (25, False, lease)
    shell.run("undrain", "greeter", ADDRESS)
    assert read(shell) == (25, True, lease)
    # The keeper has taken it over: it comes back so after the key was lost.
    (key,) = [record.key for record in shell.etcd.get_prefix(b"/jupiter/greeter/providers/").records]
    shell.etcd.delete(key)
    wait_until(lambda: shell.etcd.get(key), "it is put back")
    assert read(shell) == (25, True, lease)
    assert registry.registrar


def test_edits_at_once_undo_none_of_each_other(shell: CommandLine) -> None:
    """What one had changed between the other's reading and writing was lost without a word."""
    shell.put(ADDRESS)
    over = threading.Event()

    def change(connection: Connection, **changes: Any) -> None:
        for _ in range(1000):
            with contextlib.suppress(Failure):
                edit_endpoint(connection, "greeter", ADDRESS, **changes)
                return

    def drain_and_undrain() -> None:
        with connect(endpoints=shell.endpoints) as other:
            while not over.is_set():
                for enable in (False, True):
                    change(other, enable=enable)

    thread = threading.Thread(target=drain_and_undrain)
    thread.start()
    weights = []
    try:
        with connect(endpoints=shell.endpoints) as connection:
            for weight in range(1, 101):
                change(connection, weight=weight)
                (entry,) = read_service(connection.etcd, connection.layouts, "greeter")
                weights += [entry.read.weight] if isinstance(entry.read, Endpoint) else []
    finally:
        over.set()
        thread.join()
    assert weights == list(range(1, 101))


def test_what_is_not_there_is_said(shell: CommandLine) -> None:
    shell.put("10.0.0.1:1")
    assert "no endpoint of greeter is at 10.0.0.2:1" in shell.run("drain", "greeter", "10.0.0.2:1", code=1)


def test_the_endpoint_of_a_pod_is_the_operators(shell: CommandLine) -> None:
    key = shell.put("10.0.0.3:1")
    record = OwnerRecord(namespace="shop", pod="greeter-0", node="n", grpc_services=("shop/greeter",), keys=(key,))
    shell.etcd.put(owner_key("c", "uid"), record.to_json())
    annotate = "kubectl annotate pod --namespace shop greeter-0 grpc-etcd.dev/weight"
    advice = {
        ("set-weight", "0"): "=0 --overwrite",
        ("set-weight", "25"): "=25 --overwrite",
        ("set-weight", "0.2"): "=1 --overwrite",
        ("drain",): "=0 --overwrite",
        ("undrain",): "-",
    }
    for (command, *weight), ending in advice.items():
        said = shell.run(command, "greeter", "10.0.0.3:1", *weight, code=1)
        assert said.rstrip().endswith(annotate + ending), said
    assert json.loads(shell.run("get", "greeter", "-o", "json"))[0]["weight"] == 100
    shell.etcd.delete(owner_key("c", "uid"))


def test_a_layout_without_the_field_is_refused(shell: CommandLine) -> None:
    shell.put("10.0.0.4:1", layout="go-zero")
    said = shell.run("set-weight", "greeter", "10.0.0.4:1", "7", "--layout", "go-zero", code=1)
    assert "have no weight" in said
