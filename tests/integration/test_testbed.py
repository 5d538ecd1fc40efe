"""The test bed itself: its processes end, its faults are real, its Pods behave like a kubelet's."""

import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from testbed.apiserver import ApiServer
from testbed.build import ROOT
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import (
    DELAY_HEADER,
    FAIL_HEADER,
    GreeterProcess,
    GreeterServer,
    decode_text,
    encode_text,
    say_hello,
)
from testbed.kubelet import Kubelet, Pod
from testbed.process import Process, ProcessFailedError
from testbed.proxy import TcpProxy

GATE = "example.org/extra"
CALL_SECONDS = 30
STARTER = """
import signal, subprocess, sys, time
from pathlib import Path
from testbed.process import Process
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell in the background has it ignored
log = Path(sys.argv[1])
shell = Process("shell", ["sh", "-c", "sleep 300 & echo $!; wait"], log).start()
shell.wait_ready(lambda: bool(shell.log_tail()))
print(shell.pid, shell.log_tail().split()[0], flush=True)
time.sleep(300)
"""


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def call(address: str, *headers: tuple[str, str], timeout: float = CALL_SECONDS) -> str:
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return str(say_hello(channel)("you", timeout=timeout, metadata=headers))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_survives_whoever_started_it(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        assert starter.stdout
        child, grandchild = map(int, starter.stdout.readline().split())
        assert is_alive(child)
        assert is_alive(grandchild)
        starter.send_signal(number)
    wait_until(lambda: not is_alive(child) and not is_alive(grandchild), "both processes have ended")


def test_a_program_that_ends_too_soon_shows_its_log(tmp_path: Path) -> None:
    process = Process("broken", ["sh", "-c", "echo out of luck; exit 3"], tmp_path / "log")
    with pytest.raises(ProcessFailedError, match=r"(?s)ended with code 3.*out of luck"):
        process.start().wait_ready(lambda: False)
    assert not process.is_running


def test_a_program_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    process = Process("slow", ["sleep", "300"], tmp_path / "log").start()
    with pytest.raises(ProcessFailedError, match="not ready after"):
        process.wait_ready(lambda: False, timeout_seconds=0.1)
    assert process.returncode == -signal.SIGKILL


def test_a_frozen_program_still_stops(tmp_path: Path) -> None:
    with Process("sleeper", ["sleep", "300"], tmp_path / "log").start() as process:
        process.pause()
    assert process.returncode == -signal.SIGTERM


def test_etcd_keeps_its_data_and_ports_over_a_kill(own_etcd: EtcdServer) -> None:
    endpoints = own_etcd.endpoints
    own_etcd.etcdctl("put", "key", "value")
    own_etcd.kill()
    with pytest.raises(RuntimeError):
        own_etcd.etcdctl("--dial-timeout=200ms", "--command-timeout=500ms", "get", "key")
    own_etcd.restart()
    assert own_etcd.endpoints == endpoints
    assert own_etcd.etcdctl("get", "key", "--print-value-only").strip() == "value"


def test_etcd_goes_back_to_a_saved_state(own_etcd: EtcdServer, tmp_path: Path) -> None:
    own_etcd.etcdctl("put", "key", "old")
    own_etcd.save(tmp_path)
    own_etcd.etcdctl("put", "key", "new")
    own_etcd.load(tmp_path)
    assert own_etcd.etcdctl("get", "key", "--print-value-only").strip() == "old"


def test_etcd_of_three_members_bears_the_loss_of_one(etcd_cluster: EtcdServer) -> None:
    etcd_cluster.etcdctl("put", "key", "value")
    etcd_cluster.members[0].kill()
    wait_until(lambda: "value" in etcd_cluster.etcdctl("get", "key", check=False), "the two others serve")
    etcd_cluster.members[0].restart()
    assert etcd_cluster.etcdctl("member", "list").count("started") == len(etcd_cluster.members)


def test_etcd_demands_client_certificates_and_passwords() -> None:
    with EtcdServer.start(client_certificates=True) as server:
        admin = server.enable_auth("secret")
        server.add_user("bob", "pass", ["/bob/"], admin=admin)
        server.etcdctl("put", "/bob/key", "value", user="bob:pass")
        with pytest.raises(RuntimeError, match="permission denied"):
            server.etcdctl("put", "/alice/key", "value", user="bob:pass")
        assert server.client_certificate
        context = ssl.create_default_context(cafile=server.client_certificate.ca)
        with pytest.raises(OSError, match=r"certificate required|reset"):
            urllib.request.urlopen(f"{server.urls}/version", context=context, timeout=CALL_SECONDS)  # noqa: S310 (https)


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("text", ["", "x", "ä" * 100, "y" * 20_000])
def test_greeter_messages_are_protobuf(text: str) -> None:
    assert decode_text(encode_text(text)) == text


def test_greeter_answers_with_its_address_late_or_not_at_all() -> None:
    with GreeterServer("127.0.0.1:0") as server:
        assert call(server.address) == server.address
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            call(server.address, (DELAY_HEADER, "0.5"), timeout=0.1)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            call(server.address, (FAIL_HEADER, "RESOURCE_EXHAUSTED"))


def test_two_greeters_never_share_an_address() -> None:
    with GreeterServer("127.0.0.1:0") as server, pytest.raises(RuntimeError):
        GreeterServer(server.address)


def test_greeter_process_ends_in_order(tmp_path: Path) -> None:
    free = f"127.0.0.1:{free_port()}"
    server = GreeterProcess(free, tmp_path / "log")
    assert call(free) == free
    server.stop()
    assert server.process.returncode == 0


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with GreeterServer("127.0.0.1:0") as server, TcpProxy.start(server.address) as proxy:
        yield proxy


def test_proxy_cut_resets_connections_and_accepts_new_ones(proxy: TcpProxy) -> None:
    with socket.create_connection(address(proxy.address)) as client:
        client.settimeout(CALL_SECONDS)
        wait_until(lambda: proxy.connections, "the proxy has accepted")
        proxy.cut()
        received: list[bytes] = []
        with pytest.raises(ConnectionResetError):
            received.extend(iter(lambda: client.recv(100), b""))
    assert call(proxy.address)


def test_proxy_refuses_until_healed(proxy: TcpProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address(proxy.address))
    proxy.heal()
    assert call(proxy.address)


def test_proxy_black_hole_keeps_connections_and_loses_nothing(proxy: TcpProxy) -> None:
    with grpc.insecure_channel(proxy.address) as channel:
        hello = say_hello(channel)
        assert hello("before", timeout=CALL_SECONDS)
        proxy.black_hole()
        held = hello.future("during", timeout=60)
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            hello("lost", timeout=0.2)
        assert not held.done()
        proxy.heal()
        assert held.result(timeout=CALL_SECONDS)


def status(apiserver: ApiServer, pod: Pod, kind: str = "Ready") -> str:
    item = apiserver.client.get("v1", "Pod", pod.name, pod.item["metadata"]["namespace"])
    return next((entry["status"] for entry in item["status"]["conditions"] if entry["type"] == kind), "")


def is_gone(apiserver: ApiServer, pod: Pod) -> bool:
    return apiserver.client.find("v1", "Pod", pod.name, pod.item["metadata"]["namespace"]) is None


def test_pod_serves_on_its_address_and_tells_its_readiness(
    apiserver: ApiServer, kubelet: Kubelet, namespace: str
) -> None:
    kubelet.create_node("node-a", zone="a", region="r")
    pod = kubelet.create_pod(namespace=namespace, node="node-a", ready=False)
    assert call(pod.address) == pod.address
    assert status(apiserver, pod) == "False"
    kubelet.ready(pod)
    assert status(apiserver, pod) == "True"
    item = apiserver.client.get("v1", "Pod", pod.name, namespace)
    assert item["status"]["podIP"] == pod.ip
    assert item["metadata"]["labels"]["topology.kubernetes.io/zone"] == "a"


def test_ready_waits_for_the_readiness_gate(apiserver: ApiServer, kubelet: Kubelet, namespace: str) -> None:
    pod = kubelet.create_pod(namespace=namespace, gates=[GATE])
    assert status(apiserver, pod, "ContainersReady") == "True"
    assert status(apiserver, pod) == "False"
    gate = {"status": {"conditions": [{"type": GATE, "status": "True"}]}}
    apiserver.client.patch(pod.item, gate, "status", "application/strategic-merge-patch+json")
    wait_until(lambda: status(apiserver, pod) == "True", "Ready follows the gate")


def test_deleted_pod_drains_and_goes(apiserver: ApiServer, kubelet: Kubelet, namespace: str) -> None:
    pod = kubelet.create_pod(namespace=namespace, pre_stop_seconds=1)
    with grpc.insecure_channel(pod.address) as channel:
        slow = say_hello(channel).future("slow", timeout=60, metadata=((DELAY_HEADER, "5"),))
        server = pod.server
        assert isinstance(server, GreeterServer)
        wait_until(lambda: server.calls, "the call is under way")
        kubelet.terminate(pod)
        assert apiserver.client.get("v1", "Pod", pod.name, namespace)["metadata"]["deletionTimestamp"]
        assert slow.result() == pod.address
    wait_until(lambda: is_gone(apiserver, pod), "the Pod is gone")
    with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        call(pod.address)


def test_held_pod_stays_terminating_until_finished(apiserver: ApiServer, kubelet: Kubelet, namespace: str) -> None:
    held = kubelet.create_pod(namespace=namespace, hold=True)
    kubelet.terminate(held)
    other = kubelet.create_pod(namespace=namespace)
    kubelet.terminate(other)
    wait_until(lambda: is_gone(apiserver, other), "the Pod that does not hold is gone")
    assert call(held.address) == held.address
    kubelet.finish(held)
    assert is_gone(apiserver, held)


def test_forced_deletion_stops_the_server(apiserver: ApiServer, kubelet: Kubelet, namespace: str) -> None:
    pod = kubelet.create_pod(namespace=namespace)
    server = pod.server
    assert isinstance(server, GreeterServer)
    apiserver.client.delete(pod.item, grace_seconds=0)
    wait_until(lambda: pod.server is None, "the kubelet has seen it")


def test_changed_ip_is_served_and_the_old_one_is_not(apiserver: ApiServer, kubelet: Kubelet, namespace: str) -> None:
    pod = kubelet.create_pod(namespace=namespace)
    before = pod.address
    kubelet.change_ip(pod)
    assert call(pod.address) == pod.address != before
    assert apiserver.client.get("v1", "Pod", pod.name, namespace)["status"]["podIP"] == pod.ip
    with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        call(before)


def test_service_account_has_its_own_rights_only(apiserver: ApiServer, namespace: str) -> None:
    apiserver.client.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "guest", "namespace": namespace}}
    )
    kubeconfig = apiserver.service_account_kubeconfig(namespace, "guest")
    command = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", f"--kubeconfig={kubeconfig}"]
    assert apiserver.kubectl(*command) == f"system:serviceaccount:{namespace}:guest"
    with pytest.raises(RuntimeError, match="Forbidden"):
        apiserver.kubectl("get", "pods", f"--kubeconfig={kubeconfig}")


def test_api_server_restarts_with_its_objects_and_logs_who_did_what() -> None:
    with ApiServer.start(audit=True) as api, Kubelet(api) as kubelet:
        pod = kubelet.create_pod()
        api.kill()
        api.restart()
        kubelet.terminate(pod)
        wait_until(lambda: is_gone(api, pod), "the kubelet has found its way back")
        verbs = {event["verb"] for event in api.audit_events() if event.get("objectRef", {}).get("name") == pod.name}
    assert {"patch", "delete"} <= verbs
