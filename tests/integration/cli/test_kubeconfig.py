"""How the API server and the identity are found, on an HTTPS server that reports who asks and what its clock says."""

import base64
import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.certificates import Authority
from testbed.conditions import free_port

from .conftest import COMMAND, CommandLine


class Asked(BaseHTTPRequestHandler):
    """Answers every list as an empty one, and notes by whom it was asked."""

    server: "ClusterServer"

    def do_GET(self) -> None:
        certificate: Any = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        subject = dict(field for part in (certificate or {}).get("subject", ()) for field in part)
        who = self.headers.get("Authorization", ""), subject.get("commonName", "")
        self.server.asked.append((self.path.partition("?")[0], *who))
        body = json.dumps(self.server.answer).encode()
        if self.server.other:
            self.send_response(302)
            self.send_header("Location", self.server.other)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.server.ahead_seconds)


class ClusterServer(ThreadingHTTPServer):
    """An HTTPS server that a kubeconfig may name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", free_port()), Asked)
        self.asked: list[tuple[str, str, str]] = []
        self.ahead_seconds = 0.0
        self.answer: Any = {"metadata": {"uid": "k"}, "items": []}
        self.other = ""  # where it redirects to
        self.authority = Authority(folder / "pki")
        certificate = self.authority.issue("cluster.example", ("cluster.example",))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.authority.ca))
        context.load_cert_chain(certificate.cert, certificate.key)
        context.verify_mode = ssl.CERT_OPTIONAL
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def users(self) -> set[tuple[str, str]]:
        """Who has asked: the header and the names in the client certificate."""
        return {each[1:] for each in self.asked}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ClusterServer]:
    with ClusterServer(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def write_config(server: ClusterServer, path: Path, user: dict[str, Any], **cluster: Any) -> str:
    ca = base64.b64encode(server.authority.ca.read_bytes()).decode()
    reached = {"server": f"https://127.0.0.1:{server.server_port}", "certificate-authority-data": ca}
    named = {"tls-server-name": "cluster.example", **reached, **cluster}
    contexts = [
        {"name": name, "context": {"cluster": "c", "user": "u", "namespace": name}} for name in ("shop", "team")
    ]
    config = {
        "current-context": "shop",
        "clusters": [{"name": "c", "cluster": named}],
        "users": [{"name": "u", "user": user}],
        "contexts": contexts,
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


def check(shell: CommandLine, config: str, *arguments: str) -> dict[str, Any]:
    ended = subprocess.run(
        [*COMMAND, "check", "-o", "json", *arguments],
        env=shell.environ(KUBECONFIG=config),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    return {each["code"]: each for each in json.loads(ended.stdout)}


@pytest.mark.parametrize(
    ("user", "header"),
    [
        ({"token": "secret"}, "Bearer secret"),
        ({"tokenFile": "token"}, "Bearer from-a-file"),
        ({"username": "me", "password": "p"}, f"Basic {base64.b64encode(b'me:p').decode()}"),
        ({"exec": {"command": "sh", "args": ["plugin"], "env": [{"name": "WHO", "value": "me"}]}}, "Bearer me-v1"),
    ],
    ids=["token", "file", "password", "program"],
)
def test_identities(
    shell: CommandLine, server: ClusterServer, tmp_path: Path, user: dict[str, Any], header: str
) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    plugin = tmp_path / "plugin"
    plugin.write_text(
        'case "$KUBERNETES_EXEC_INFO" in *client.authentication.k8s.io/v1\\"*) version=v1;; esac\n'
        'echo "{\\"status\\": {\\"token\\": \\"$WHO-$version\\"}}"\n'
    )
    if "exec" in user:
        user["exec"] |= {"args": [str(plugin)], "apiVersion": "client.authentication.k8s.io/v1"}
    found = check(shell, write_config(server, tmp_path / "config", user))
    assert server.users == {(header, "")}
    assert not {"GE0901", "GE0512", "GE0513"} & found.keys()


@pytest.mark.parametrize("is_inline", [True, False])
def test_client_certificates(
    shell: CommandLine,
    server: ClusterServer,
    tmp_path: Path,
    is_inline: bool,  # noqa: FBT001  the parameter
) -> None:
    issued = server.authority.issue("somebody")
    files = {"client-certificate": Path(issued.cert), "client-key": Path(issued.key)}
    user = (
        {f"{name}-data": base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
        if is_inline
        else {name: str(path) for name, path in files.items()}
    )
    check(shell, write_config(server, tmp_path / "config", user))
    assert server.users == {("", "somebody")}


def test_contexts_namespaces_and_several_files(shell: CommandLine, server: ClusterServer, tmp_path: Path) -> None:
    config = write_config(server, tmp_path / "config", {"token": "t"})
    empty = tmp_path / "first"
    empty.write_text("current-context: team\n")
    check(shell, config)
    assert "/api/v1/namespaces/shop/pods" in {path for path, _, _ in server.asked}
    for arguments, path in (
        (("--context", "team"), "/api/v1/namespaces/team/pods"),
        (("-n", "own"), "/api/v1/namespaces/own/pods"),
        (("-A",), "/api/v1/pods"),
    ):
        server.asked.clear()
        check(shell, config, *arguments)
        assert path in {each for each, _, _ in server.asked}
    server.asked.clear()
    check(shell, f"{empty}:nowhere:{config}")
    assert "/api/v1/namespaces/team/pods" in {path for path, _, _ in server.asked}
    assert "there are shop, team" in check(shell, config, "--context", "other")["GE0902"]["problem"]


def test_clocks_that_differ(shell: CommandLine, server: ClusterServer, tmp_path: Path) -> None:
    config = write_config(server, tmp_path / "config", {"token": "t"})
    server.ahead_seconds = 90.0
    problem = check(shell, config)["GE0512"]["problem"]
    assert re.fullmatch(r"the API server's clock is (8\d|90) s ahead of that of this machine", problem)
    server.ahead_seconds = -90.0
    assert check(shell, config)["GE0512"]["problem"].endswith("s behind that of this machine")


@pytest.mark.parametrize(
    ("user", "cluster", "words"),
    [
        ({"token": "t"}, {"tls-server-name": "other.example"}, "not valid for 'other.example'"),
        ({"token": "t"}, {"certificate-authority-data": ""}, "certificate verify failed"),
        (
            {"exec": {"command": "false", "apiVersion": "client.authentication.k8s.io/v1"}},
            {},
            "false, which the kubeconfig",
        ),
        ({"tokenFile": "absent"}, {}, "FileNotFoundError"),
    ],
    ids=["name", "authority", "program", "file"],
)
def test_what_is_wrong_is_named(  # noqa: PLR0917  the table's columns among them
    shell: CommandLine,
    server: ClusterServer,
    tmp_path: Path,
    user: dict[str, Any],
    cluster: dict[str, Any],
    words: str,
) -> None:
    config = write_config(server, tmp_path / "config", user, **cluster)
    assert words in check(shell, config)["GE0901"]["problem"]
    assert words in check(shell, config, "-A")["GE0902"]["problem"]


def test_no_identity_goes_where_a_server_redirects_to(
    shell: CommandLine, server: ClusterServer, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with ClusterServer(tmp_path / "other") as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        server.other = f"https://127.0.0.1:{other.server_port}/login"
        config = write_config(server, tmp_path / "config", {"token": "t"}, **{"insecure-skip-tls-verify": True})
        assert check(shell, config)["GE0901"]["problem"].startswith("302 ")
        other.shutdown()
        thread.join()
    assert (server.users, other.users) == ({("Bearer t", "")}, set())


@pytest.mark.parametrize("answer", [{"items": 5}, {"items": ["x"]}, {"metadata": 5}, {"items": [{"metadata": []}]}, []])
def test_what_answers_may_be_no_api_server(
    shell: CommandLine, server: ClusterServer, tmp_path: Path, answer: object
) -> None:
    server.answer = answer
    problem = check(shell, write_config(server, tmp_path / "config", {"token": "t"}))["GE0901"]["problem"]
    assert problem.endswith("answers, but not as an API server does")


SECRET = "s3cr3t"  # noqa: S105  nobody's


@pytest.mark.parametrize(
    "user",
    [
        f"{{token: '{SECRET}', password: {SECRET}: x}}",
        f'{{token: "{SECRET}\\nmore"}}',
        "{exec: {command: 'false', apiVersion: v1, args: [--client-secret, s3cr3t]}}",
        "{exec: {command: echo, apiVersion: v1, args: [s3cr3t]}}",
        '{exec: {command: echo, apiVersion: v1, args: [\'{"status": {"token": "s3cr3t\\u0007"}}\']}}',
    ],
    ids=["not YAML", "a line break", "a program that fails", "a program that prints it", "a control character"],
)
@pytest.mark.parametrize("output", ["json", "table"])
def test_no_finding_has_a_secret(shell: CommandLine, tmp_path: Path, user: str, output: str) -> None:
    config = tmp_path / "config"
    config.write_text(
        "current-context: a\n"
        "contexts: [{name: a, context: {cluster: a, user: a}}]\n"
        "clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\n"
        f"users:\n- name: a\n  user: {user}\n"
    )
    said = shell.run("check", "-A", "-o", output, code=1, KUBECONFIG=str(config))
    assert "GE0902" in said
    assert SECRET not in said


def test_a_token_may_end_with_its_line(shell: CommandLine, server: ClusterServer, tmp_path: Path) -> None:
    printed = json.dumps({"status": {"token": "secret\n"}})
    plugin = {"command": "echo", "args": [printed], "apiVersion": "client.authentication.k8s.io/v1"}
    for user in ({"token": "secret\n"}, {"exec": plugin}):
        check(shell, write_config(server, tmp_path / "config", user))
    assert server.users == {("Bearer secret", "")}


def test_manifests_on_standard_input_are_left_to_the_command_and_judged_each_time(
    shell: CommandLine, server: ClusterServer, tmp_path: Path
) -> None:
    plugin = {"command": "cat", "apiVersion": "client.authentication.k8s.io/v1"}
    config = write_config(server, tmp_path / "config", {"exec": plugin})
    ended = subprocess.run(
        [*COMMAND, "check", "-f", "-", "-o", "json", "--wait", "--timeout", "1.5"],
        env=shell.environ(KUBECONFIG=config),
        input=json.dumps({"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": {"name": "x"}}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = {each["code"]: each for each in json.loads(ended.stdout)}
    assert "cat, which the kubeconfig names, printed no ExecCredential" in found["GE0901"]["problem"]
    assert "spec: it is required" in found["GE0801"]["problem"], found
    assert "GE0803" not in found


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "127.0.0.1:1"])
def test_a_server_that_is_no_url(shell: CommandLine, server: ClusterServer, tmp_path: Path, url: str) -> None:
    config = Path(write_config(server, tmp_path / "config", {"token": "t"}))
    config.write_text(config.read_text().replace(f"https://127.0.0.1:{server.server_port}", repr(url)))
    problem = check(shell, str(config))["GE0901"]["problem"]
    assert problem == f"the server '{url}' of the kubeconfig does not begin with https://"


def test_a_kubeconfig_that_is_none(shell: CommandLine, tmp_path: Path) -> None:
    for text in ("[1]", "{", "clusters: 5", "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]"):
        (tmp_path / "config").write_text(text)
        found = check(shell, str(tmp_path / "config"))
        assert "GE0901" in found, text
    (tmp_path / "config").write_text("current-context: ''\n")
    assert "GE0907" in check(shell, str(tmp_path / "config")), "no cluster is meant"
