"""The library in one process with other etcd clients and an application's own auth.proto; and the package etcd3.

Programs run in environments of their own, made in the cache; each prints what it saw.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from testbed.environments import AETCD, CSLAB_ETCD3, ETCD3, NEWEST, environment, variables
from testbed.etcd import EtcdServer

# Installing takes a while the first time.
pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]

OURS = """
import grpc_etcd
from grpc_etcd.etcd import Etcd, WatchSnapshot
def ours():
    with Etcd(address) as client:
        client.put(b"ours", b"1")
        watch = client.list_watch(b"ours")
        listed = next(watch)
        assert isinstance(listed, WatchSnapshot) and listed.records[0].value == b"1", listed
"""
CSLAB = """
import etcd3
def theirs():
    with etcd3.client(host, int(port)) as client:
        client.put("theirs", "2")
        assert client.get("theirs")[0] == b"2"
        with Etcd.from_channel(client.channel) as adopted:
            adopted.put(b"adopted", b"3")
            assert adopted.get(b"theirs").value == b"2"
        assert client.get("adopted")[0] == b"3"
"""
AETCD_CLIENT = """
import aetcd, asyncio
async def use():
    async with aetcd.Client(host, int(port)) as client:
        await client.put(b"theirs", b"2")
        assert (await client.get(b"theirs")).value == b"2"
def theirs():
    asyncio.run(use())
"""
APPLICATION = """
import auth_pb2
def theirs():
    ticket = auth_pb2.Ticket(user="me")
    assert auth_pb2.Ticket.FromString(ticket.SerializeToString()).user == "me"
"""
OTHERS = {"cslab-etcd3": CSLAB, "aetcd": AETCD_CLIENT, "auth.proto": APPLICATION}
AUTH_PROTO = 'syntax = "proto3"; package shop; message Ticket { string user = 1; }'


@pytest.fixture(scope="module")
def neighbours() -> Path:
    """A Python with both other clients."""
    return environment(*NEWEST, AETCD, CSLAB_ETCD3)


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an application's own auth.proto, compiled the usual way."""
    folder = tmp_path_factory.mktemp("application")
    (folder / "auth.proto").write_text(AUTH_PROTO)
    compile_it = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "auth.proto"]
    subprocess.run(compile_it, cwd=folder, check=True)
    return folder


def run(python: Path, program: str, *arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program; its first argument is etcd's address."""
    head = "import sys\naddress = sys.argv[1]\nhost, _, port = address.partition(':')\n"
    command = [str(python), "-c", head + program, *arguments]
    return subprocess.run(
        command, cwd=folder, env=variables(**more), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("other", OTHERS)
def test_both_work_in_one_process(
    etcd: EtcdServer, neighbours: Path, application: Path, other: str, first: str
) -> None:
    imports = [OURS, OTHERS[other]] if first == "ours" else [OTHERS[other], OURS]
    program = "\n".join([*imports, "ours(); theirs(); ours()"])
    done = run(neighbours, program, etcd.endpoints, folder=application, PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr


def test_the_clash_that_the_private_pool_avoids_is_real(etcd: EtcdServer, neighbours: Path, application: Path) -> None:
    """The same applications without us: each other client takes the names that the application wants for itself."""
    for client in (CSLAB, AETCD_CLIENT):
        done = run(neighbours, APPLICATION + client, etcd.endpoints, folder=application)
        assert done.returncode
        assert "duplicate file name" in done.stderr


@pytest.fixture(scope="module")
def etcd3() -> Path:
    """A Python with the package etcd3 itself."""
    return environment(*NEWEST, ETCD3)


def test_etcd3_cannot_be_imported_beside_a_current_protobuf(etcd: EtcdServer, etcd3: Path, tmp_path: Path) -> None:
    """Why it is not what the library is built on: docs/decisions/0002."""
    done = run(etcd3, "import etcd3", etcd.endpoints, folder=tmp_path)
    assert "Descriptors cannot be created directly" in done.stderr


READER = """
import json, etcd3
client = etcd3.client(host, int(port))
prefix = sys.argv[2]
events, cancel = client.watch_prefix(prefix)
held = {meta.key.decode(): value.decode() for value, meta in client.get_prefix(prefix)}
print(json.dumps(held), flush=True)
for event in events:
    print(json.dumps([type(event).__name__, event.key.decode(), event.value.decode()]), flush=True)
"""


def test_etcd3_reads_and_watches_our_keys(etcd: EtcdServer, etcd3: Path) -> None:
    layout = Jupiter()
    one, two = (
        layout.encode("greeter", Endpoint(name="greeter", address=f"10.0.0.{number}:9000")) for number in (1, 2)
    )
    assert isinstance(one, KeyValue)
    assert isinstance(two, KeyValue)
    program = "import sys\naddress = sys.argv[1]\nhost, _, port = address.partition(':')\n" + READER
    with Etcd(etcd.endpoints) as client:
        lease = client.lease(60)
        client.put(*one, lease=lease)
        command = [str(etcd3), "-c", program, etcd.endpoints, layout.prefix("greeter").decode()]
        pure = variables(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
        with subprocess.Popen(command, env=pure, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            try:
                assert json.loads(reader.stdout.readline()) == {one.key.decode(): one.value.decode()}
                client.put(*two, lease=lease)
                client.revoke(lease)
                seen = [json.loads(reader.stdout.readline()) for _ in range(3)]
            finally:
                reader.kill()
    assert seen == [
        ["PutEvent", two.key.decode(), two.value.decode()],
        ["DeleteEvent", one.key.decode(), ""],
        ["DeleteEvent", two.key.decode(), ""],
    ]


def test_the_channel_of_an_etcd3_client_is_adopted(etcd: EtcdServer, etcd3: Path, tmp_path: Path) -> None:
    """In its own process, whose protobuf is the pure Python one; our messages work there too."""
    done = run(
        etcd3,
        CSLAB.replace("import etcd3", "import etcd3\nfrom grpc_etcd.etcd import Etcd") + "theirs()",
        etcd.endpoints,
        folder=tmp_path,
        PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python",
    )
    assert done.returncode == 0, done.stderr
