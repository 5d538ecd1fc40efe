"""Programs of their own: forks, ends without close, proxies, and applications that use xDS themselves."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from testbed.environments import variables

from .conftest import World


@pytest.fixture
def world(etcd_world: World) -> World:
    """Another process can reach a real etcd only."""
    return etcd_world


PREAMBLE = """
import os, sys, threading, time
import grpc, grpc_etcd
from testbed.greeter import say_hello
registry = grpc_etcd.Registry(sys.argv[1])
def call(channel):
    return say_hello(channel)("x", timeout=30, wait_for_ready=True)
"""


def run(world: World, program: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program against the world's etcd to its end."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PREAMBLE + textwrap.dedent(program), world.server.endpoints],
        env={**variables(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def lines(world: World, program: str, environment: dict[str, str] | None = None) -> list[str]:
    done = run(world, program, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


STREAMS = (
    6  # of a process: a watch for its channels, a watch and a keep-alive for what it registers, and what is opening
)


FORKS = """
channel = registry.insecure_channel("greeter")
call(channel)
results = {"inherited": [], "new": []}
for number in range(100):
    child = os.fork()
    if child == 0:
        try:
            kind = "inherited" if number % 2 else "new"
            used = channel if number % 2 else registry.insecure_channel("greeter")
            call(used)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(9)
    _, status = os.waitpid(child, 0)
    results["inherited" if number % 2 else "new"].append(status)
    call(channel)
print(*(sum(1 for status in each if status) for each in results.values()))
"""


@pytest.mark.parametrize("environment", [{}, {"GRPC_ENABLE_FORK_SUPPORT": "1"}], ids=["default", "fork-support"])
def test_a_hundred_forks_with_a_channel_open(world: World, environment: dict[str, str]) -> None:
    world.serve(1)
    assert lines(world, FORKS, environment) == ["0", "0"]


WATCHING = """
seen = []
def watch():
    for services in registry.watch_all():
        seen.append(len(services))
threading.Thread(target=watch, daemon=True).start()
while not seen:
    time.sleep(0.01)
"""


def test_children_of_a_process_that_watches_all_services_live(world: World) -> None:
    """Up to a quarter of them crashed: gRPC says of each fork with a thread in it that it skips its fork handlers."""
    world.serve(1)
    done = run(world, WATCHING + FORKS)
    assert done.stdout.split() == ["0", "0"], done.stderr
    assert "skipping fork" not in done.stderr


def test_a_watch_of_all_services_goes_on_after_a_fork(world: World) -> None:
    world.serve(1)
    record = world.record("10.0.0.1:1", "reporter")
    program = f"""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    registry.etcd.put({record.key!r}, {record.value!r})
    deadline = time.monotonic() + 60
    while seen[-1] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(*seen)
    """
    assert lines(world, WATCHING + textwrap.dedent(program)) == ["1", "2"]


def test_a_watch_of_all_services_is_over_in_a_child_though_a_thread_of_the_parent_waits_in_it(world: World) -> None:
    world.serve(1)
    program = """
    watch, seen = registry.watch_all(), []
    def follow():
        for services in watch:
            seen.append(services)
    threading.Thread(target=follow, daemon=True).start()
    while not seen:
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        threading.Timer(30, os._exit, [1]).start()
        print(next(watch, "over"), flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    """
    assert lines(world, program) == ["over", "0"]


def test_the_parent_follows_on_after_a_fork(world: World) -> None:
    first = world.serve(1)[0]
    second = world.greeter()
    record = world.record(second.address)
    program = f"""
    channel = registry.insecure_channel("greeter")
    call(channel)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    registry.etcd.put({record.key!r}, {record.value!r})
    deadline = time.monotonic() + 60
    while call(channel) != {second.address!r} and time.monotonic() < deadline:
        pass
    print(call(channel), call(channel))
    """
    assert set(lines(world, program)) == {first.address, second.address}


def test_two_threads_may_fork_at_once(world: World) -> None:
    world.serve(1)
    program = """
    channel = registry.insecure_channel("greeter")
    call(channel)
    failed = []
    def fork():
        for _ in range(25):
            child = os.fork()
            if child == 0:
                try:
                    call(channel)
                    os._exit(0)
                except BaseException as error:
                    print(error, file=sys.stderr, flush=True)
                    os._exit(9)
            _, status = os.waitpid(child, 0)
            if status:
                failed.append(status)
    threads = [threading.Thread(target=fork) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    call(channel)
    print(failed)
    """
    done = run(world, program)
    assert done.stdout.split() == ["[]"], done.stderr


def test_a_child_of_a_fork_in_the_midst_of_the_first_use_has_its_own_registry(world: World) -> None:
    """It would wait for ever for a lock that a thread of its parent holds."""
    world.serve(1)
    program = """
    begun, over = threading.Event(), threading.Event()
    def begin():
        with registry.exclusively():
            begun.set()
            over.wait()
    threading.Thread(target=begin).start()
    begun.wait()
    child = os.fork()
    if child == 0:
        call(registry.insecure_channel("greeter"))
        os._exit(0)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended[0] == 0:
        os.kill(child, 9)
    over.set()
    print(ended[0] == child, ended[1])
    """
    assert lines(world, program) == ["True", "0"]


def test_a_child_says_of_services_what_it_knows_itself(world: World) -> None:
    """What its parent knew at the fork never changes there: a worker would be unready, or an alert fire, for ever."""
    world.put("127.0.0.1:1", "absent", enable=False)
    world.serve(1)
    program = """
    channel = registry.insecure_channel("absent")
    registry.endpoints("absent", 30)
    found = [registry.ready(), *registry.stats()]
    child = os.fork()
    if child == 0:
        print(*found, registry.ready(), *registry.stats())
        call(registry.insecure_channel("greeter"))
        print(registry.ready(), *registry.stats(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    """
    assert lines(world, program) == ["False", "absent", "True", "True", "greeter"]


def test_no_ended_stream_is_left_to_the_garbage_collector_of_a_forked_child(world: World) -> None:
    """There it would wait for a lock that was held when the child was copied, and its thread with it."""
    world.serve(1)
    program = """
    import gc
    gc.disable()
    def streams():
        return sum(isinstance(each, grpc.RpcError) and isinstance(each, grpc.Call) for each in gc.get_objects())
    channel = registry.insecure_channel("greeter")
    registry.register(grpc_etcd.Endpoint(name="forking", address="10.0.0.1:1"))
    for _ in range(12):
        call(channel)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    call(channel)
    print(streams())
    """
    (left,) = lines(world, program)
    assert int(left) <= STREAMS, left


def test_a_fork_after_temporary_folders_were_cleaned_up_leaves_the_parent_hearing(world: World, tmp_path: Path) -> None:
    first = world.serve(1)[0]
    second = world.greeter()
    record = world.record(second.address)
    program = f"""
    import shutil, tempfile, pathlib
    channel = registry.insecure_channel("greeter")
    call(channel)
    for folder in pathlib.Path(tempfile.gettempdir()).glob("grpc-etcd-*"):
        shutil.rmtree(folder)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    registry.etcd.put({record.key!r}, {record.value!r})
    deadline = time.monotonic() + 60
    while call(channel) != {second.address!r} and time.monotonic() < deadline:
        pass
    print(call(channel), call(channel))
    """
    assert set(lines(world, program, {"TMPDIR": str(tmp_path)})) == {first.address, second.address}


def test_channels_find_their_way_after_temporary_folders_were_cleaned_up(world: World, tmp_path: Path) -> None:
    (server,) = world.serve(1)
    world.put(server.address, "other")
    program = """
    import shutil, tempfile, pathlib
    with registry.insecure_channel("greeter") as channel:
        print(call(channel))
    for folder in pathlib.Path(tempfile.gettempdir()).glob("grpc-etcd-*"):
        shutil.rmtree(folder)
    with registry.insecure_channel("other") as channel:
        print(call(channel))
    """
    assert lines(world, program, {"TMPDIR": str(tmp_path)}) == [server.address] * 2


def test_a_channel_at_rest_finds_its_way_after_temporary_folders_were_cleaned_up(world: World, tmp_path: Path) -> None:
    (server,) = world.serve(1)
    program = """
    import shutil, tempfile, pathlib
    from grpc_etcd.xds.names import ServiceName
    from grpc_etcd.xds.control_plane import this_process
    from testbed.conditions import wait_until
    channel = registry.insecure_channel("greeter", [("grpc.client_idle_timeout_ms", 1000)])
    call(channel)
    board = this_process().control_plane.resource_cache
    wait_until(lambda: board.followers(ServiceName("default", "greeter")) == 1, "the stream's end")
    for folder in pathlib.Path(tempfile.gettempdir()).glob("grpc-etcd-*"):
        shutil.rmtree(folder)
    def answer():
        try:
            return say_hello(channel)("x", timeout=10)
        except grpc.RpcError:
            return None
    print(wait_until(answer, "an answer"))
    """
    assert lines(world, program, {"TMPDIR": str(tmp_path)}) == [server.address]


@pytest.mark.parametrize("taken", ["folder.mkdir(); folder.chmod(0o777)", "folder.symlink_to(folder.parent)"])
def test_a_socket_is_never_looked_for_in_a_folder_of_somebody_else(world: World, tmp_path: Path, taken: str) -> None:
    (server,) = world.serve(1)
    world.put(server.address, "other")
    program = f"""
    import shutil, tempfile, pathlib
    channel = registry.insecure_channel("greeter")
    print(call(channel))
    (folder,) = pathlib.Path(tempfile.gettempdir()).glob("grpc-etcd-*")
    shutil.rmtree(folder)
    {taken}
    try:
        registry.insecure_channel("other")
    except OSError as error:
        print("TMPDIR" in str(error), folder.name in str(error))
    print(call(channel))
    """
    found = lines(world, program, {"TMPDIR": str(tmp_path)})
    assert found == [server.address, "True", "True", server.address]


def test_multiprocessing_children_call_on(world: World) -> None:
    server = world.serve(1)[0]
    program = """
    import multiprocessing
    channel = registry.insecure_channel("greeter")
    call(channel)
    def work(_):
        return call(channel)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        print(*set(pool.map(work, range(40))))
    """
    assert lines(world, program) == [server.address]


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


def test_a_program_leaves_no_socket_behind(world: World, tmp_path: Path) -> None:
    world.serve(1)
    lines(world, 'call(registry.insecure_channel("greeter"))', {"TMPDIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_the_socket_is_private(world: World, tmp_path: Path) -> None:
    world.serve(1)
    program = """
    import pathlib
    call(registry.insecure_channel("greeter"))
    (folder,) = pathlib.Path(os.environ["TMPDIR"]).iterdir()
    print(oct(folder.stat().st_mode & 0o777))
    """
    assert lines(world, program, {"TMPDIR": str(tmp_path)}) == ["0o700"]


def test_a_socket_path_that_would_be_too_long_is_no_obstacle(world: World, tmp_path: Path) -> None:
    server = world.serve(1)[0]
    long = tmp_path / ("x" * 120)
    long.mkdir()
    assert lines(world, 'print(call(registry.insecure_channel("greeter")))', {"TMPDIR": str(long)}) == [server.address]


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


KILLED = """
channel = registry.insecure_channel("greeter")
call(channel)
os.kill(os.getpid(), signal.SIGKILL)
"""
NEXT = """
OLD = 3600  # seconds, by which folders are made older than they are
import pathlib, shutil, tempfile
place = pathlib.Path(tempfile.gettempdir())
def folders():
    return {folder.name for folder in place.glob("grpc-etcd-*")}
def age():
    for folder in place.glob("grpc-etcd-*"):
        os.utime(folder, (time.time() - OLD, time.time() - OLD))
"""


def test_the_socket_of_a_killed_process_is_removed_by_the_next(world: World, tmp_path: Path) -> None:
    world.serve(1)
    variables = {"TMPDIR": str(tmp_path)}
    assert run(world, "import signal" + KILLED, variables).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("grpc-etcd-*")
    program = """
age()
channel = registry.insecure_channel("greeter")
call(channel)
print(*folders())
"""
    (own,) = lines(world, NEXT + program, variables)
    assert own != left.name
    assert not list(tmp_path.glob("grpc-etcd-*"))


def test_folders_of_others_in_the_temporary_folder_stay(world: World, tmp_path: Path) -> None:
    """Also one that is called as those of the sockets are: such as the data of an etcd for tests."""
    (server,) = world.serve(1)
    theirs = [tmp_path / name / "data" for name in ("grpc-etcd-backup", "grpc-etcd-socket-notes")]
    for file in theirs:
        file.parent.mkdir()
        file.write_text("precious")
    (tmp_path / "grpc-etcd-empty").mkdir()
    program = """
age()
with registry.insecure_channel("greeter") as channel:
    print(call(channel))
"""
    assert lines(world, NEXT + program, {"TMPDIR": str(tmp_path)}) == [server.address]
    assert [file.read_text() for file in theirs] == ["precious"] * 2
    assert (tmp_path / "grpc-etcd-empty").is_dir()


def test_the_sockets_of_living_processes_and_what_nobody_locks_yet_stay(world: World, tmp_path: Path) -> None:
    (server,) = world.serve(1)
    (tmp_path / "grpc-etcd-new").mkdir()
    program = """
import subprocess
with registry.insecure_channel("greeter") as channel:
    call(channel)
mine = folders() - {"grpc-etcd-new"}
for name in mine:  # made again, as after a cleaner of temporary folders, it is locked again
    shutil.rmtree(place / name)
with registry.insecure_channel("greeter") as channel:
    call(channel)
for name in mine:
    os.utime(place / name, (time.time() - OLD, time.time() - OLD))
other = subprocess.run([sys.executable, "-c", "import grpc_etcd, sys; grpc_etcd.Registry(sys.argv[1])"
    ".insecure_channel('greeter').close()", sys.argv[1]])
assert other.returncode == 0 and mine <= folders() and "grpc-etcd-new" in folders(), folders()
with registry.insecure_channel("greeter", [("grpc.lb_policy_name", "round_robin")]) as channel:
    print(call(channel))
"""
    assert lines(world, NEXT + program, {"TMPDIR": str(tmp_path)}) == [server.address]
