"""The examples in Python, run as their users run them: alone, under uvicorn with workers, under gunicorn that forks."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.build import ROOT
from testbed.conditions import free_port, wait_until

from .conftest import SERVICE, Load, World, follows


@pytest.fixture
def world(etcd_world: World) -> World:
    """Another process can reach a real etcd only."""
    return etcd_world


EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules that protoc makes of the greeter's proto."""
    folder = tmp_path_factory.mktemp("generated")
    source = EXAMPLES / "greeter"
    outputs = [f"--proto_path={source}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *outputs, "greeter.proto"], check=True)
    return folder


def environment(world: World, generated: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(generated), "GRPC_ETCD_ENDPOINTS": world.server.endpoints, **more}


def run(world: World, generated: Path, program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "python" / program)]
    done = subprocess.run(
        command, env=environment(world, generated), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def output(world: World, generated: Path, program: str) -> list[str]:
    return run(world, generated, program).stdout.splitlines()


def test_the_asyncio_client(world: World, generated: Path) -> None:
    servers = world.serve(2)
    lines = output(world, generated, "asyncio_client.py")
    assert sum(int(line.split()[0]) for line in lines) == 10
    assert len(lines) > 1, "not all calls go to the endpoint that is connected first"
    assert {line.split()[1] for line in lines} <= {server.address for server in servers}


@contextmanager
def serving(world: World, generated: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server that registers itself; the test ends it in order."""
    command = [sys.executable, str(EXAMPLES / "python" / "server.py"), *arguments]
    process = subprocess.Popen(command, env=environment(world, generated))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_that_registers_itself_is_replaced_without_a_failed_call(
    world: World, generated: Path, load: type[Load]
) -> None:
    registry = world.registry()
    channel = world.channel(registry)
    old, new = (f"127.0.7.{number}:{free_port(f'127.0.7.{number}')}" for number in (201, 202))
    with serving(world, generated, old) as first, serving(world, generated, new) as second:
        follows(channel, [old, new])
        with load(channel) as calls:
            first.terminate()
            assert first.wait(60) == 0
            follows(channel, [new])
        assert calls.failures == []
        second.terminate()
        assert second.wait(60) == 0
    assert registry.list_services(SERVICE) == ()


def test_the_canary(world: World, generated: Path) -> None:
    stable, canary = world.greeter(), world.greeter()
    world.put(stable.address, group="stable")
    world.put(canary.address, group="canary")
    counts = {line.split()[1]: int(line.split()[0]) for line in output(world, generated, "canary.py")}
    assert counts[stable.address] + counts[canary.address] == 1000
    assert 50 <= counts[canary.address] <= 150


def test_the_canary_of_servers_that_register_themselves(world: World, generated: Path) -> None:
    """Both in one group: the other one is missing, and the program prints that."""
    registry = world.registry()
    channel = world.channel(registry)
    one, two = (f"127.0.7.{number}:{free_port(f'127.0.7.{number}')}" for number in (203, 204))
    with serving(world, generated, one, "stable"), serving(world, generated, two, "stable") as second:
        follows(channel, [one, two])
        assert "canary" in run(world, generated, "canary.py").stderr
        second.terminate()
        assert second.wait(60) == 0
        with serving(world, generated, two, "canary"):
            wait_until(lambda: len(registry.list_services(SERVICE)) == 2, "both are registered")
            done = run(world, generated, "canary.py")
    counts = {line.split()[1]: int(line.split()[0]) for line in done.stdout.splitlines()}
    assert (done.stderr, 50 <= counts[two] <= 150) == ("", True)


@contextmanager
def web_server(world: World, generated: Path, *command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a web server of several processes, and end it in order."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment(world, generated),
            cwd=EXAMPLES / "python",
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15), log.read_text()
    assert "Traceback" not in log.read_text()


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        body: str = answer.read().decode()
        return body


def is_up(port: int, path: str) -> bool:
    try:
        return bool(get(port, path))
    except OSError:
        return False


def test_fastapi_under_uvicorn_with_workers(world: World, generated: Path, tmp_path: Path) -> None:
    servers = world.serve(2)
    port = free_port()
    command = ("uvicorn", "web:app", "--workers", "2", "--host", "127.0.0.1", "--port", str(port))
    with web_server(world, generated, *command, log=tmp_path / "log"):
        wait_until(lambda: is_up(port, "/health"), "uvicorn")
        wait_until(lambda: json.loads(get(port, "/health"))["endpoints"] == 2, "both endpoints")
        found = {json.loads(get(port, f"/hello/{number}"))["message"] for number in range(40)}
        assert found == {server.address for server in servers}


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["workers", "preload"])
def test_gunicorn_that_forks(world: World, generated: Path, tmp_path: Path, preload: tuple[str, ...]) -> None:
    first = world.serve(1)[0]
    port = free_port()
    command = ("gunicorn", "wsgi:app", "--workers", "3", "--bind", f"127.0.0.1:{port}", *preload)
    with web_server(world, generated, *command, log=tmp_path / "log"):
        wait_until(lambda: is_up(port, "/x"), "gunicorn")
        assert {get(port, "/x") for _ in range(30)} == {first.address}
        second = world.serve(1)[0]
        world.delete(first.address)
        wait_until(lambda: {get(port, "/x") for _ in range(30)} == {second.address}, "the workers to follow")
