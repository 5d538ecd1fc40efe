"""How programs end, which environment they find, and applications that use xDS themselves."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from .conftest import World
from .programs import lines, run


@pytest.fixture
def world(etcd_world: World) -> World:
    """Another process can reach a real etcd only."""
    return etcd_world


@pytest.mark.parametrize("world_of_calls", ["sync", "aio"])
def test_a_program_that_closes_nothing_ends_at_once(world: World, world_of_calls: str) -> None:
    world.serve(1)
    sync = """
    channel = registry.insecure_channel("greeter")
    call(channel)
    print(time.time())
    """
    aio = """
    import asyncio
    async def main():
        channel = registry.aio.insecure_channel("greeter")
        await say_hello(channel)("x", timeout=30, wait_for_ready=True)
    asyncio.run(main())
    print(time.time())
    """
    (printed,) = lines(world, sync if world_of_calls == "sync" else aio)
    assert time.time() - float(printed) < 4.0  # on a busy machine; less than any time-out that it could wait for


WAITS = {
    "watch_all": "async for _ in registry.aio.watch_all(): begun.set()",
    "wait_async": """
        registration = away.register(grpc_etcd.Endpoint(name="greeter", address="10.0.0.1:1"))
        waiting = asyncio.create_task(registration.wait_async(None))
        while not any(each.name == "grpc-etcd-wait" for each in threading.enumerate()):
            await asyncio.sleep(0.01)
        begun.set()
        await waiting
    """,
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_program_whose_daemon_threads_wait_on_event_loops_ends(world: World, wait: str) -> None:
    """Nobody cancels their tasks."""
    program = """
    import asyncio, threading
    begun = threading.Event()
    away = grpc_etcd.Registry("127.0.0.1:1", stop_seconds=0.1)
    async def main():
        WAIT
    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
    begun.wait(60)
    print("end", flush=True)
    """
    waiting = textwrap.indent(textwrap.dedent(WAITS[wait]).strip(), " " * 8).strip()
    assert lines(world, program.replace("WAIT", waiting)) == ["end"]


@pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy", "https_proxy"])
@pytest.mark.parametrize("is_far", [False, True], ids=["", "far"])
def test_a_proxy_in_the_environment_is_not_asked(world: World, variable: str, tmp_path: Path, is_far: bool) -> None:  # noqa: FBT001 - drawn
    """Nor where the folder for temporary files can hold no socket, because its path is too long."""
    server = world.serve(1)[0]
    folder = tmp_path / ("x" * 120 if is_far else "x")
    folder.mkdir()
    program = 'print(call(registry.insecure_channel("greeter")))'
    environment = {variable: "http://127.0.0.1:1", "TMPDIR": str(folder)}
    assert lines(world, program, environment) == [server.address]


# An application that uses xDS itself: its management server is a stand-alone server of ours in the same program.
OWN_XDS = """
import json
import signal
theirs = grpc_etcd.Registry(sys.argv[1], name="theirs")
server = grpc_etcd.serve("127.0.0.1:0", theirs)
text = json.dumps({
    "xds_servers": [{"server_uri": f"127.0.0.1:{server.port}", "channel_creds": [{"type": "insecure"}]}],
    "node": {"id": "application"},
})
path = os.environ.get("BOOTSTRAP_FILE")
if path:
    open(path, "w").write(text)
    os.environ["GRPC_XDS_BOOTSTRAP"] = path
else:
    os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = text
"""


@pytest.mark.parametrize("form", ["file", "text"])
def test_an_application_keeps_its_own_bootstrap(world: World, form: str, tmp_path: Path) -> None:
    server = world.serve(1)[0]
    program = """
    print(call(registry.insecure_channel("greeter")))
    print(call(grpc.insecure_channel(registry.target("greeter"))))
    print(call(grpc.insecure_channel("xds:///greeter", [("grpc.enable_http_proxy", 0)])))
    """
    environment = {"BOOTSTRAP_FILE": str(tmp_path / "bootstrap.json")} if form == "file" else {}
    assert lines(world, OWN_XDS + textwrap.dedent(program), environment) == [server.address] * 3


def test_a_bootstrap_that_was_read_before_us_is_said_and_mended(world: World) -> None:
    server = world.serve(1)[0]
    program = """
    import logging
    logging.basicConfig(stream=sys.stdout, format="%(name)s-warned", level=logging.WARNING)
    early = grpc.insecure_channel("xds:///greeter")
    print(call(early))
    print(call(registry.insecure_channel("greeter")))
    print(call(early))
    """
    printed = lines(world, OWN_XDS + textwrap.dedent(program))
    assert printed == [server.address, "grpc_etcd-warned", server.address, server.address]


def test_a_child_process_is_not_confused_by_its_parents_bootstrap(world: World) -> None:
    server = world.serve(1)[0]
    program = """
    import subprocess
    call(registry.insecure_channel("greeter"))
    if os.environ.get("INNER"):
        print(call(registry.insecure_channel("greeter")))
    else:
        inner = {**os.environ, "INNER": "1"}
        print(subprocess.run([sys.executable, "-c", open("/proc/self/cmdline").read().split(chr(0))[4], sys.argv[1]],
              env=inner, capture_output=True, text=True, check=True).stdout)
    """
    assert lines(world, program) == [server.address]


def test_importing_starts_and_loads_nothing() -> None:
    program = """
    import sys, threading
    before = set(sys.modules)
    import grpc_etcd
    new = sorted(name for name in set(sys.modules) - before if name.split(".")[0] in ("grpc", "google", "asyncio"))
    print(threading.active_count(), new)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "1 []"


def test_the_default_registry_comes_from_the_environment(world: World) -> None:
    server = world.serve(1)[0]
    program = 'print(call(grpc_etcd.insecure_channel("etcd:///greeter")))'
    assert lines(world, program, {"GRPC_ETCD_ENDPOINTS": world.server.endpoints}) == [server.address]
    failed = run(world, program)
    assert "GRPC_ETCD_ENDPOINTS is not set" in failed.stderr


def test_the_default_registry_has_aio_channels_too(world: World) -> None:
    server = world.serve(1)[0]
    program = """
    import asyncio
    import grpc_etcd.client.aio
    async def main():
        async with grpc_etcd.aio.insecure_channel("etcd:///greeter") as channel:
            print(await say_hello(channel)("x", timeout=30, wait_for_ready=True))
    asyncio.run(main())
    """
    assert lines(world, program, {"GRPC_ETCD_ENDPOINTS": world.server.endpoints}) == [server.address]


def test_settings_name_every_fault_at_once(world: World) -> None:
    program = """
    import json
    try:
        grpc_etcd.Registry.from_environ()
    except grpc_etcd.SettingsError as error:
        print(json.dumps(error.faults))
    """
    environment = {"GRPC_ETCD_LAYOUTS": "jupiter,nope", "GRPC_ETCD_CERT": "/c", "GRPC_ETCD_PASSWORD": "p"}
    faults = json.loads(run(world, program, environment).stdout)
    assert [fault.split(":")[0].split(" ")[0] for fault in faults] == [
        "GRPC_ETCD_ENDPOINTS",
        "GRPC_ETCD_LAYOUTS",
        "GRPC_ETCD_CERT",
        "GRPC_ETCD_USER",
    ]
