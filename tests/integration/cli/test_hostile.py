"""Whoever may write to etcd cannot reach the terminal, or the parser, of whoever looks at it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpc_etcd import Endpoint
from grpc_etcd.cli.commands import cli
from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import CLOCK_PREFIX, OWNER_PREFIX, SYNCED_PREFIX, ClockReading, clock_key
from testbed.etcd import EtcdServer
from testbed.examples import examples

from .conftest import CommandLine

SERVICE = "greeter"
# Each example takes the same etcd, and a busy machine is not slow code.
TOLERATED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
TITLE = "\x1b]0;owned\x07"
hostile = st.one_of(
    st.sampled_from(
        [TITLE, "\x9b31m", "a\nb 10.0.0.1:1", "\u202egnp", "\ud800", "[red]x[/red]", "[/]", ":smile:", "\x00"]
    ),
    st.text(st.characters(exclude_categories=()), max_size=8),
)
# What JSON can carry: a lone surrogate is written as an escape, and comes back as one.
documents = st.fixed_dictionaries(
    {"namespace": hostile, "pod": hostile, "node": hostile, "grpcServices": st.lists(hostile, max_size=2)}
)
records = st.fixed_dictionaries(
    {
        "endpoint": st.builds(
            dict, zone=hostile, group=hostile, region=hostile, metadata=st.dictionaries(hostile, hostile, max_size=2)
        ),
        "tail": st.one_of(st.binary(min_size=1, max_size=8), hostile.map(lambda text: text.encode(errors="replace"))),
        "value": st.one_of(st.binary(max_size=8), hostile.map(lambda text: json.dumps({"address": text}).encode())),
        "owner": documents,
        "cluster": st.binary(min_size=1, max_size=6),
    }
)


@pytest.fixture
def etcd_client(etcd: EtcdServer) -> Iterator[Etcd]:
    with Etcd(etcd.endpoints) as client:
        yield client


def write(etcd: Etcd, record: dict[str, Any]) -> bytes:
    """Put an endpoint, a record that is none, an owner and a synced key; return the endpoint's key."""
    for prefix in (b"/jupiter/", b"/grpc-etcd/"):
        etcd.delete_prefix(prefix)
    reading = ClockReading(etcd.status().revision, time.time())  # so that `history` begins here
    etcd.put(clock_key("c1"), reading.to_json())
    etcd.put(CLOCK_PREFIX + record["cluster"] + b"/", record["value"])
    layout = make_layout("jupiter")
    made = layout.encode(SERVICE, Endpoint(name=SERVICE, address="127.0.9.9:9", **record["endpoint"]))
    if not isinstance(made, KeyValue):  # a lone surrogate: a Go writer cannot say it, but bytes in etcd can
        made = layout.encode(SERVICE, Endpoint(name=SERVICE, address="127.0.9.9:9"))
        assert isinstance(made, KeyValue)
    etcd.put(made.key, made.value)
    broken = layout.prefix(SERVICE) + b"providers/grpc://" + record["tail"]
    etcd.put(broken, record["value"])
    etcd.put(made.key.replace(SERVICE.encode(), record["tail"].replace(b"/", b"")), made.value)  # a service's name
    owner = record["owner"] | {"keys": [made.key.decode(), "/jupiter/greeter/providers/grpc://" + TITLE]}
    etcd.put(OWNER_PREFIX + record["cluster"] + b"/uid", json.dumps(owner).encode())
    etcd.put(SYNCED_PREFIX + record["cluster"], b"")
    return made.key


def run(etcd: EtcdServer, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--endpoints", etcd.endpoints], prog_name="grpc-etcd")


def assert_harmless(result: Result, output: str) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1), result.output
    assert all(line.isprintable() for line in result.output.split("\n")), result.output
    if output == "json" and result.stdout:
        json.loads(result.stdout)
    elif output == "yaml":
        yaml.safe_load(result.stdout)


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
@given(record=records)
@settings(max_examples=examples(15), suppress_health_check=TOLERATED)
def test_hostile_records_reach_nobodys_terminal(
    etcd: EtcdServer, etcd_client: Etcd, record: dict[str, Any], output: str
) -> None:
    key = write(etcd_client, record)
    for arguments in (
        ("ls",),
        ("get", SERVICE),
        ("owner", key.decode()),
        ("owner", "/jupiter/" + TITLE),
        ("check", SERVICE),
        ("check",),
        ("watch", SERVICE, "--changes", "1"),
        ("watch", "--changes", "1"),
        ("history", SERVICE, "--since", "0s"),
        ("history", SERVICE, "--at", str(etcd_client.status().revision)),
    ):
        assert_harmless(run(etcd, *arguments, "-o", output), output)


@given(record=records, is_owned=st.booleans())
@settings(max_examples=examples(15), suppress_health_check=TOLERATED)
def test_who_edits_hostile_records_is_not_reached_by_them(
    etcd: EtcdServer,
    etcd_client: Etcd,
    record: dict[str, Any],
    is_owned: bool,  # noqa: FBT001 - drawn
) -> None:
    key = write(etcd_client, record)
    if not is_owned:
        etcd_client.delete_prefix(OWNER_PREFIX)
    for command, *weight in (("drain",), ("set-weight", "7"), ("undrain",)):
        for address in ("127.0.9.9:9", TITLE):
            assert_harmless(run(etcd, command, SERVICE, address, *weight), "")
    assert etcd_client.get(key)


@given(name=hostile, kind=st.sampled_from(["Service", "Deployment", TITLE]), selector=hostile, port=hostile)
@settings(max_examples=examples(50), suppress_health_check=TOLERATED)
def test_hostile_manifests_reach_nobodys_terminal(name: str, kind: str, selector: str, port: str) -> None:
    template = {"metadata": {"labels": {"app": selector}}, "spec": {"containers": [{"name": "server"}]}}
    ports = [{"name": "grpc", "port": 9000, "targetPort": port}]
    spec = {"selector": {"app": selector}, "ports": ports, "template": template}
    manifest = json.dumps({"kind": kind, "metadata": {"name": name}, "spec": spec})
    result = CliRunner().invoke(cli, ["generate", "-f", "-"], input=manifest, prog_name="grpc-etcd")
    assert_harmless(result, "")
    list(yaml.safe_load_all(result.stdout))


def repeat_lists(levels: int) -> str:
    lists = ["- &l0 {items: [1]}"] + [
        f"- &l{level} {{items: [{', '.join([f'*l{level - 1}'] * 9)}]}}" for level in range(1, levels)
    ]
    return "\n".join(["items:", *lists])


@pytest.mark.parametrize("command", [("check", "--no-kubernetes"), ("generate",)], ids=["check", "generate"])
@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (repeat_lists(12), "its aliases repeat too much"),
        ("&list\nkind: List\nitems: [*list]\n", "an anchor contains itself"),
        ("{items: [" * 200 + "]}" * 200, "nested too deeply"),
        ("[" * 5000, "depth"),
    ],
    ids=["aliases of aliases", "a list in itself", "two hundred lists", "thousands of brackets"],
)
def test_manifests_that_never_end_are_refused(
    shell: CommandLine, tmp_path: Path, command: tuple[str, ...], manifest: str, words: str
) -> None:
    (tmp_path / "some.yaml").write_text(manifest)
    assert words in shell.run(*command, "-f", str(tmp_path), code=1)


def test_aliases_are_read_and_folders_may_be_called_as_files(shell: CommandLine, tmp_path: Path) -> None:
    greeter = """\ufeffapiVersion: grpc-etcd.dev/v1alpha1
kind: GrpcService
metadata: {name: greeter, labels: &labels {app: greeter}}
spec: {selector: {matchLabels: *labels}, metadata: *labels}
"""
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "folder.yaml" / "some.yaml").write_text(greeter, encoding="utf-8")
    assert "No error found" in shell.run("check", "--no-kubernetes", "-f", str(tmp_path))


def test_programs_get_back_what_stands_in_etcd(shell: CommandLine) -> None:
    zone = "\x1b[31m\u202e\u00fc\U0001f600"
    shell.put("127.0.9.9:9", zone=zone)
    assert shell.run_json("get", SERVICE)[0]["zone"] == zone
    assert yaml.safe_load(shell.run("get", SERVICE, "-o", "yaml"))[0]["zone"] == zone
    assert "\\x1b[31m\\u202e\u00fc" in shell.run("get", SERVICE)


def test_a_key_that_is_no_text_can_be_asked_for(shell: CommandLine) -> None:
    shell.etcd.put(b"/jupiter/greeter/\xff", b"x")
    assert "registered itself" in shell.run("owner", b"/jupiter/greeter/\xff", code=1)


def test_another_encoding_of_the_terminal_is_no_traceback(shell: CommandLine) -> None:
    shell.put("127.0.9.9:9", zone="\u4e2d")
    for output in ("table", "json", "yaml"):
        shell.run("get", SERVICE, "-o", output, PYTHONIOENCODING="ascii")


def test_every_command_is_known_here() -> None:
    """A new command that printed by itself would be left out of the tests above."""
    known = {"ls", "get", "watch", "owner", "register", "check", "ads", "completion", "drain", "undrain", "set-weight"}
    known |= {"generate", "history"}
    assert set(cli.commands) == known
    assert isinstance(cli, click.Group)
