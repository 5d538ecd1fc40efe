"""What the pages tell people to type: chart values exist, manifests are accepted, roles allow just what they say."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.apiserver import ApiServer
from testbed.build import ROOT, binary
from testbed.chart import CHART
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Kubelet
from testbed.manifests import apply_crd, wait_established
from tests.docs.test_links import PAGES


def blocks(page: Path, language: str) -> list[str]:
    """Every fenced block of a language, without its indentation."""
    found: list[str] = []
    inside: str | None = None
    lines: list[str] = []
    for line in page.read_text().splitlines():
        fence = re.match(r" *```(.*)", line)
        if fence and inside is None:
            inside, lines = fence[1], []
        elif fence:
            if inside == language:
                found.append(textwrap.dedent("\n".join(lines)))
            inside = None
        else:
            lines.append(line)
    return found


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
    found = re.findall(r"^etcdctl (role .*|user .*|auth .*)$", page.read_text(), re.MULTILINE)
    return [line.split() for line in found]


def test_the_roles_allow_what_they_are_for_and_no_more(own_etcd: EtcdServer) -> None:
    lines = etcdctl_lines(ROOT / "docs/operations.md")
    assert lines.pop() == ["auth", "enable"], "what is typed later needs a user"
    for command in lines:
        if command[:2] == ["user", "add"]:
            command[2] += ":secret"  # the page lets etcdctl ask for it
        own_etcd.etcdctl(*command)
    own_etcd.etcdctl("user", "add", "reader:secret")
    own_etcd.etcdctl("user", "grant-role", "reader", "grpc-client")
    own_etcd.etcdctl("auth", "enable")
    writer, reader = "grpc-etcd-operator:secret", "reader:secret"
    for key in ("/jupiter/greeter/providers/grpc://10.0.0.1:1", "/grpc-etcd/leader/x", "/grpc-etcd/synced/x"):
        own_etcd.etcdctl("put", key, "1", user=writer)
    assert own_etcd.etcdctl("get", "--prefix", "/jupiter/greeter/", user=reader)
    assert own_etcd.etcdctl("get", "--prefix", "/grpc-etcd/synced/", user=reader)
    for user, refused in (
        (writer, ("put", "/registry/secrets/x", "1")),
        (reader, ("put", "/jupiter/greeter/x", "1")),
        (reader, ("get", "/grpc-etcd/owner/x")),
    ):
        with pytest.raises(RuntimeError, match="permission denied"):
            own_etcd.etcdctl(*refused, user=user)


# What a page explains to people to type and this test does not: where else it is run.
RUN_ELSEWHERE = {
    "make": "test_links.py looks each target up; CI runs check and test, tests/e2e the demo, tests/image the image",
    "git clone": "CI starts with it",
    "cd": "the next command is what matters; examples/jupiter-client runs in tests/interop",
    "docker build": "tests/image builds the same file with buildah, and runs what it has built",
    "kubectl wait --for=condition=Ready": "needs a service that is ready; tests/interop/test_gitops.py runs it",
    "kubectl --namespace argocd": "needs Argo CD; tests/interop/test_gitops.py runs the health check as it does",
    "kubectl grpc-etcd": "tests/e2e/test_check.py runs the plugin",
    "helm test": "needs a kubelet; tests/chart/test_install.py runs its Pod",
    "kubectl --namespace grpc-etcd port-forward": "needs a kubelet",
    "kubectl logs": "needs a kubelet; `make test-cluster` reads logs",
    "kubectl --namespace grpc-etcd exec": "needs a kubelet; tests/chart/test_install.py has the settings",
    "etcdctl": "test_the_roles_allow_what_they_are_for_and_no_more",
}
PROGRAMS = sorted({"helm", "kubectl", *(command.split()[0] for command in RUN_ELSEWHERE)})


def commands(page: Path) -> list[str]:
    """Every command of a page, whole: in blocks without a language, the lines that begin with a program."""
    whole = [re.sub(r"\\\n\s*", "", block) for block in blocks(page, "")]
    lines = [line.removeprefix("$ ") for block in whole for line in block.splitlines()]
    return [line for line in lines if re.match(rf"({'|'.join(PROGRAMS)}) [^─]+$", line)]


@pytest.fixture
def shell(own_apiserver: ApiServer, tmp_path: Path) -> Callable[[str], str]:
    """Type a command as an admin of a cluster would, in a folder with charts, examples and the files that are named."""
    for name in ("charts", "crds", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("password", "client-password", "ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).write_text("x")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("helm", "kubectl"):
        (programs / name).symlink_to(binary(name))
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "KUBECONFIG": str(own_apiserver.kubeconfig)}

    for name in ("shop", "till"):
        own_apiserver.kubectl("create", "namespace", name)

    def run(command: str) -> str:
        answer = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, f"{command}\n{answer.stdout}{answer.stderr}"
        return answer.stdout

    return run


def test_every_command_of_every_page_works_as_typed(own_apiserver: ApiServer, shell: Callable[[str], str]) -> None:
    """Each page is typed from its top; what it has installed goes before the next, but the CRD, which stays."""
    seen = 0
    for page in PAGES:
        for command in commands(page):
            if command.startswith(tuple(RUN_ELSEWHERE)):
                continue
            if command.startswith("helm upgrade --install"):
                uninstall(shell)
            shell(command)
            wait_established(own_apiserver.client)
            seen += 1
        uninstall(shell)
    assert seen > 10


def test_gates_can_be_opened_by_hand_as_the_page_says(own_apiserver: ApiServer, shell: Callable[[str], str]) -> None:
    gate = "grpc-etcd.dev/registered"
    (loop,) = (block for block in blocks(ROOT / "docs/operations.md", "") if "--subresource=status" in block)
    with Kubelet(own_apiserver) as kubelet:
        pods = [kubelet.create_pod(gates=[gate], serve=False) for _ in range(2)]
        shell(loop)
        wait_until(lambda: all(pod.gate_states.get(gate) and pod.is_ready for pod in pods), "the Pods are ready")


def uninstall(shell: Callable[[str], str]) -> None:
    for release in json.loads(shell("helm list --all-namespaces --output json")):
        shell(f"helm uninstall --namespace {release['namespace']} {release['name']}")


def test_every_subcommand_that_a_page_names_exists() -> None:
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`(grpc-etcd(?:-operator)?) ([a-z]+(?:-[a-z]+)*)\b", text))
    assert len(named) >= 5
    for program, subcommand in sorted(named):
        command = [Path(sys.executable).with_name(program), subcommand, "--help"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, f"{program} {subcommand}: {answer.stderr}"


def test_the_columns_that_the_readme_shows_are_those_of_the_crd() -> None:
    shown = re.search(r"^NAME .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    crd = yaml.safe_load((ROOT / "crds/grpcservices.yaml").read_text())
    columns = [
        column["name"]
        for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]
        if not column.get("priority")  # others are shown with -o wide
    ]
    assert shown
    assert shown[0].split() == ["NAME", *(name.upper() for name in columns)]


@pytest.mark.parametrize("script", ["testbed/image.sh", ".ci/run"])
def test_shell_scripts_parse(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
