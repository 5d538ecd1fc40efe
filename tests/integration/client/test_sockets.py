"""The unix socket of each process: where it is, who may use it, and what becomes of it."""

import signal
from pathlib import Path

import pytest

from .conftest import World
from .programs import lines, run


@pytest.fixture
def world(etcd_world: World) -> World:
    """Another process can reach a real etcd only."""
    return etcd_world


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
