"""What the pages tell people to type: chart values exist, manifests are accepted, roles allow just what they say."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.apiserver import ApiServer
from testbed.build import ROOT
from testbed.chart import CHART
from testbed.etcd import EtcdServer
from testbed.manifests import apply_crd
from tests.docs.test_links import PAGES


def blocks(page: Path, language: str) -> list[str]:
    """Every fenced block of a language, without its indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def every_set_option() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for value in re.findall(r"--set[ =]'?([A-Za-z.]+)=", page.read_text()):
            yield page.name, value


def test_every_value_that_a_page_sets_is_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = set(every_set_option())
    assert len(found) >= 8
    for page, path in found:
        inner: dict[str, Any] = schema
        for name in path.split("."):
            assert name in inner["properties"], f"{page} sets {path}"
            inner = inner["properties"][name]


def test_every_value_that_a_page_speaks_of_is_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    sections = [name for name, part in schema["properties"].items() if part.get("properties")]
    for page in PAGES:
        for section, name in re.findall(r"`([a-zA-Z]+)\.([a-zA-Z]+)(?:=\w+)?`", page.read_text()):
            if section in sections:
                assert name in schema["properties"][section]["properties"], f"{page.name}: {section}.{name}"


def test_every_whole_manifest_in_a_page_is_accepted(apiserver: ApiServer, namespace: str) -> None:
    apply_crd(apiserver.client)
    seen = 0
    for page in PAGES:
        for text in blocks(page, "yaml"):
            item = yaml.safe_load(text)
            if "kind" in item:
                seen += 1
                apiserver.kubectl("create", "--dry-run=server", "--namespace", namespace, "-f", "-", stdin=text)
            elif "layouts" in item["spec"]:
                spec = {"selector": {"matchLabels": {"app": "greeter"}}} | item["spec"]
                whole = {"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": {"name": "x"}}
                manifest = json.dumps(whole | {"spec": spec})
                apiserver.kubectl("create", "--dry-run=server", "--namespace", namespace, "-f", "-", stdin=manifest)
    assert seen


def etcdctl_lines(page: Path) -> list[list[str]]:
    found = re.findall(r"^etcdctl (role .*|user .*)$", page.read_text(), re.MULTILINE)
    return [line.split() for line in found]


def test_the_roles_allow_what_they_are_for_and_no_more(own_etcd: EtcdServer) -> None:
    for command in etcdctl_lines(ROOT / "docs/operations.md"):
        if command[:2] == ["user", "add"]:
            command[2] += ":secret"  # the page lets etcdctl ask for it
        own_etcd.etcdctl(*command)
    own_etcd.etcdctl("user", "add", "reader:secret")
    own_etcd.etcdctl("user", "grant-role", "reader", "grpc-client")
    own_etcd.enable_auth("rootpass")
    writer, reader = "grpc-etcd-operator:secret", "reader:secret"
    for key in ("/jupiter/greeter/providers/grpc://10.0.0.1:1", "/grpc-etcd/leader/x", "/grpc-etcd/synced/x"):
        own_etcd.etcdctl("put", key, "1", user=writer)
    assert own_etcd.etcdctl("get", "--prefix", "/jupiter/greeter/", user=reader)
    assert own_etcd.etcdctl("get", "--prefix", "/grpc-etcd/synced/", user=reader)
    for user, command in (
        (writer, ("put", "/registry/secrets/x", "1")),
        (reader, ("put", "/jupiter/greeter/x", "1")),
        (reader, ("get", "/grpc-etcd/owner/x")),
    ):
        with pytest.raises(RuntimeError, match="permission denied"):
            own_etcd.etcdctl(*command, user=user)


@pytest.mark.parametrize("script", ["testbed/image.sh", ".ci/run"])
def test_shell_scripts_parse(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
