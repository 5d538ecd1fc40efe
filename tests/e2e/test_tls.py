"""TLS to etcd as admins have it: certificates of public authorities, and certificates that carry another name."""

from collections.abc import Iterator

import pytest

from testbed.conditions import existing, wait_until
from testbed.etcd import EtcdServer
from tests.e2e.conftest import Scene
from tests.e2e.test_commands import run


@pytest.fixture(scope="module")
def secured() -> Iterator[EtcdServer]:
    with EtcdServer.start(tls=True) as server:
        yield server


def flags(scene: Scene, secured: EtcdServer) -> list[str]:
    bare = secured.endpoints.replace("https://", "")
    return [
        f"--namespace={scene.namespace}",
        f"--cluster-id={scene.cluster}",
        "--etcd-endpoints=" + ",".join(f"https://{endpoint}" for endpoint in bare.split(",")),
    ]


def test_https_alone_trusts_the_systems_authorities(scene: Scene, secured: EtcdServer) -> None:
    """The test bed's authority stands in for a public one."""
    scene.apply()
    pod = scene.pod()
    trusted = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(existing(secured.authority).ca)}
    answer = run("plan", *flags(scene, secured), kubeconfig=scene.api.kubeconfig, **trusted)
    assert answer.returncode == 0, answer.stderr
    assert pod.address in answer.stdout


def test_an_explicit_server_name_is_what_certificates_are_held_against(scene: Scene, secured: EtcdServer) -> None:
    scene.apply()
    pod = scene.pod()
    given = [*flags(scene, secured), f"--etcd-ca={existing(secured.authority).ca}"]
    answer = run("plan", *given, "--etcd-server-name=localhost", kubeconfig=scene.api.kubeconfig)
    assert answer.returncode == 0, answer.stderr
    assert pod.address in answer.stdout
    endpoints = secured.endpoints.replace("https://", "")
    replica = scene.start(
        f"--etcd-ca={existing(secured.authority).ca}", "--etcd-server-name=other.example", etcd=endpoints
    )
    wait_until(lambda: "--etcd-server-name" in replica.text(), "the log names the setting")
    wait_until(lambda: "etcd.tls.serverName" in replica.get("/readyz")[1], "the probe's answer names the chart's value")
