"""`grpc-etcd check` sees both sides: each planted mistake has its code, and the command that it names mends it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpc_etcd.etcd import NoSpace
from grpc_etcd.registry.own import leader_key
from testbed.apiserver import ApiServer
from testbed.build import binary
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.helm import find, render
from testbed.kubelet import Pod
from testbed.kubernetes_api import ApiError
from tests.e2e.conftest import MakeScene, Scene

BIN = Path(sys.executable).parent
GATE = "grpc-etcd.dev/registered"
RBAC = "rbac.authorization.k8s.io"
Found = dict[str, str]
REFUSED_CODES = {"GE0801", "GE0802"}


class Checker:
    """Runs the command as somebody with a kubeconfig and etcd's endpoints, and types the commands that it names."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        tools = {str(Path(binary(each)).parent) for each in ("kubectl", "etcdctl")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_ETCD_")}
        self.environ = kept | {
            "PATH": os.pathsep.join([str(BIN), *tools, os.environ["PATH"]]),
            "KUBECONFIG": str(scene.api.kubeconfig),
            "GRPC_ETCD_ENDPOINTS": scene.etcd.endpoints,
            "ETCDCTL_ENDPOINTS": scene.etcd.endpoints,
        }

    def run(self, *arguments: str, program: str = "grpc-etcd", **environ: str) -> tuple[int, str, str]:
        """Run `check` and return its exit code, its output and its errors."""
        ended = subprocess.run(
            [*program.split(), "check", *arguments],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in ended.stderr
        return ended.returncode, ended.stdout, ended.stderr

    def look(self, *arguments: str, **environ: str) -> dict[str, Found]:
        """Return what is found in the scene's namespace, by code; the code of exit fits."""
        where = () if "-A" in arguments or "-n" in arguments else ("-n", self.scene.namespace)
        code, output, _ = self.run(*arguments, *where, "-o", "json", **environ)
        findings: list[Found] = json.loads(output)
        assert code == int(any(each["severity"] == "error" for each in findings)), output
        return {each["code"]: each for each in findings}

    def wait(self, code: str, *words: str) -> Found:
        """Wait until something is found, with some words; return it."""

        def find() -> Found:
            found = self.look().get(code, {})
            return found if all(word in found.get("problem", "") for word in words) else {}

        return wait_until(find, f"{code} with {words}")

    def type(self, command: str, **environ: str) -> None:
        """Carry out a command as it was named."""
        subprocess.run(["bash", "-c", command], env=self.environ | environ, check=True, timeout=120)


@pytest.fixture
def checker(scene: Scene) -> Checker:
    return Checker(scene)


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"selector": {"matchLabels": {"app": "gretter"}}}, "GE0101", "the closest is app=greeter"),
        ({"selector": {"matchLabels": {"name": "greeter"}}}, "GE0101", "the closest is app=greeter"),
        ({"port": "grcp"}, "GE0201", "has the port 'grcp'; they have grpc (50051)"),
        ({"prefix": "elsewhere"}, "GE0302", "PrefixNotAllowed (stalled"),
        ({"registries": ["nowhere"]}, "GE0304", "this operator knows default"),
    ],
    ids=["a label misspelt", "another key", "a port misspelt", "a prefix", "a registry"],
)
def test_the_command_of_a_finding_mends_the_spec(
    scene: Scene, checker: Checker, spec: dict[str, Any], code: str, words: str
) -> None:
    scene.start().wait_leading()
    pod = scene.pod()
    scene.apply(**spec)
    found = checker.wait(code, words)
    assert (found["severity"], found["page"]) == ("error", f"docs/checks.md#{code.lower()}")
    assert next(iter(checker.look("greeter"))) == code, "the cause comes before what is missing in etcd"
    checker.type(found["remedy"])
    scene.registry.wait_addresses(pod.address)
    wait_until(lambda: not {code, "GE0103"} & checker.look().keys(), "it is mended")


def test_a_service_whose_pods_are_not_there_yet_is_not_given_those_of_another(scene: Scene, checker: Checker) -> None:
    scene.pod("emailservice-1", labels={"app": "emailservice"})
    scene.apply("emailservice", selector={"matchLabels": {"app": "emailservice"}})
    scene.apply("adservice", selector={"matchLabels": {"app": "adservice"}})
    found = checker.look("adservice")["GE0101"]
    assert "no Pod has the label app=adservice yet; Pods there have app=emailservice" in found["problem"]
    assert found["remedy"] == f"kubectl -n {scene.namespace} get pods --show-labels"


def test_a_grpcservice_that_registers_another_name_is_found_by_its_own(scene: Scene, checker: Checker) -> None:
    scene.start().wait_leading()
    pod = scene.pod()
    scene.apply("backend", name="greeter")
    scene.registry.wait_addresses(pod.address)
    assert checker.look("backend").keys() == checker.look("greeter").keys()
    scene.apply("backend", name="greeter", selector={"matchLabels": {"app": "gretter"}})
    scene.registry.wait_addresses()
    assert "service 'greeter'" in checker.look("backend")["GE0701"]["subject"]


def test_a_name_of_another_namespace(scene: Scene, checker: Checker) -> None:
    other = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    scene.start(f"--namespace={other}").wait_leading()
    scene.apply("greeter", other)
    scene.wait_condition("Accepted", "True", "Accepted", "greeter", other)
    pod = scene.pod()
    scene.apply("greeter")
    found = checker.wait("GE0301", f"belongs to the GrpcService {other}/greeter")
    checker.type(found["remedy"])
    scene.registry.wait_addresses(pod.address, name=f"{scene.namespace}-greeter")


def test_a_namespace_that_does_not_exist(scene: Scene, checker: Checker) -> None:
    scene.start().wait_leading()
    assert "GE0908" not in checker.look(), "it is empty"
    found = checker.look("-n", "misspelt")
    assert found["GE0908"]["problem"] == "there is no namespace 'misspelt'"
    assert found.keys().isdisjoint({"GE0901", "GE0902"})


def test_what_a_layout_cannot_store_is_stalled(scene: Scene, checker: Checker) -> None:
    scene.start().wait_leading()
    scene.apply(layouts=["kitex"], weight=0)
    scene.pod()
    found = checker.wait("GE0307", "Unwritable (stalled: waiting does not help)")
    assert "kubectl -n" in found["remedy"]


def test_a_key_that_another_writer_holds(scene: Scene, checker: Checker) -> None:
    pod = scene.pod(ready=False)
    key = f"/jupiter/greeter/providers/grpc://{pod.address}".encode()
    scene.client.put(key, b"{}")
    scene.start().wait_leading()
    scene.apply()
    scene.kubelet.ready(pod)
    found = checker.wait("GE0305", "KeyTaken")
    assert found["remedy"] == "grpc-etcd get greeter"


def test_a_missing_grant_is_the_very_command_that_heals(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(apiserver, own_etcd)
    admin = own_etcd.enable_auth("root-secret")
    own_etcd.add_user("operator", "secret", ["/grpc-etcd/"], admin=admin)
    password = tmp_path / "password"
    password.write_text("secret")
    scene.start("--etcd-user=operator", f"--etcd-password-file={password}").wait_leading()
    pod = scene.pod()
    scene.apply()
    checker = Checker(scene)
    root = tmp_path / "root"
    root.write_text("root-secret")
    checker.environ |= {"GRPC_ETCD_USER": "root", "GRPC_ETCD_PASSWORD_FILE": str(root)}
    found = checker.wait("GE0405", "PermissionDenied")
    assert found["remedy"] == "etcdctl role grant-permission ROLE --prefix=true readwrite /jupiter/greeter/"
    assert "PermissionDenied" in checker.look()["GE0103"]["problem"]
    checker.type(found["remedy"].replace("ROLE", "operator"), ETCDCTL_USER=admin)
    scene.client.close()
    wait_until(lambda: not {"GE0405", "GE0103"} & checker.look().keys(), "it is healed")
    assert pod.address in own_etcd.etcdctl("get", "--prefix", "--keys-only", "/jupiter/", user=admin)


def test_the_command_for_a_full_etcd_frees_what_its_history_takes(apiserver: ApiServer, make_scene: MakeScene) -> None:
    """A defragmentation gives back only what was compacted before: without that the alarm comes again at once."""
    with EtcdServer.start(flags=["--quota-backend-bytes=6000000"]) as small:
        scene = make_scene(apiserver, small)
        checker = Checker(scene)
        while "NOSPACE" not in small.etcdctl("alarm", "list", check=False):
            with contextlib.suppress(NoSpace):
                scene.client.put(b"/jupiter/one", b"x" * 500_000)
        checker.type(checker.look()["GE0406"]["remedy"])
        for _ in range(5):
            scene.client.put(b"/jupiter/one", b"x" * 500_000)
        assert "GE0406" not in checker.look()


@pytest.fixture
def deploy(scene: Scene) -> Iterator[Callable[..., object]]:
    """Create the chart's Deployment, which the other tests on this API server are not to see."""
    given = {"etcd": {"endpoints": [scene.etcd.endpoints]}, "clusterId": "c"}

    def create(**values: object) -> object:
        return scene.api.client.create(find(render(given | values, namespace=scene.namespace), "Deployment"))

    yield create
    scene.api.kubectl("delete", "deployments", "-n", scene.namespace, "--all")


def test_gates_without_an_operator_and_its_deployment(
    scene: Scene, checker: Checker, deploy: Callable[..., object]
) -> None:
    scene.apply()
    scene.pod(gates=[GATE])
    found = checker.look()
    assert "1 Pod is waiting at grpc-etcd.dev/registered, and there is no leader" in found["GE0601"]["problem"]
    assert "is leader in this etcd" in found["GE0501"]["problem"]
    assert found["GE0501"]["remedy"].startswith("helm install grpc-etcd-operator")
    assert "no leader" in found["GE0103"]["problem"]
    deploy()
    scene.api.kubectl("scale", "deploy/grpc-etcd-operator", "-n", scene.namespace, "--replicas", "0")
    found = checker.look()
    scale = f"kubectl -n {scene.namespace} scale deploy/grpc-etcd-operator --replicas 2"
    assert {found[code]["remedy"] for code in ("GE0501", "GE0502", "GE0601")} == {scale}
    checker.type(scale)
    assert "none of 2 replicas is ready" in checker.look()["GE0502"]["problem"]
    scene.start().wait_leading()
    wait_until(lambda: not {"GE0501", "GE0601", "GE0602", "GE0103"} & checker.look().keys(), "the gate is open")


def test_keys_that_a_cluster_of_before_has_left_are_named(scene: Scene, checker: Checker) -> None:
    old = f"{scene.cluster}-old"
    before = scene.start(f"--cluster-id={old}", "--leader-ttl=3", "--lease-ttl=600").wait_leading()
    scene.apply()
    gone = scene.pod()
    scene.registry.wait_addresses(gone.address)
    before.process.kill()
    scene.api.client.delete(gone.item, grace_seconds=0)
    scene.start().wait_leading()
    pod = scene.pod()
    scene.registry.wait_addresses(gone.address, pod.address)
    found = checker.wait("GE0515", "1 Pod is registered under this id, which has no leader", gone.name)
    assert (found["severity"], found["subject"]) == ("warning", f"cluster id {old}")
    assert f"cleanup --cluster-id {old} " in found["remedy"]
    checker.type(f"grpc-etcd-operator cleanup --cluster-id {old} --etcd-endpoints {scene.etcd.endpoints}")
    scene.registry.wait_addresses(pod.address)
    assert "GE0515" not in checker.look()


def test_a_namespace_that_the_operator_may_not_read_is_found_before_anything_differs(
    scene: Scene, checker: Checker, deploy: Callable[..., object]
) -> None:
    """Its Role gone, the operator reads nothing there, nor can it write so into a status, which goes on to be good."""
    scene.start().wait_leading()
    pod = scene.pod()
    scene.apply()
    scene.registry.wait_addresses(pod.address)
    assert "GE0508" not in checker.look(), "no Deployment is seen, so nobody knows the operator's account"
    deploy()
    found = checker.look()["GE0508"]
    assert (found["subject"], found["severity"]) == (f"namespace {scene.namespace}", "error")
    user = f"system:serviceaccount:{scene.namespace}:grpc-etcd-operator"
    assert f"({user}) is not allowed to list pods and grpcservices there" in found["problem"]
    assert found["remedy"].startswith("helm upgrade grpc-etcd-operator ")
    scene.api.kubectl(
        "create", "clusterrole", scene.namespace, "--verb=list", "--resource=pods,grpcservices.grpc-etcd.dev"
    )
    grant = ("-n", scene.namespace, f"--clusterrole={scene.namespace}", f"--user={user}")
    scene.api.kubectl("create", "rolebinding", "operator", *grant)
    wait_until(lambda: "GE0508" not in checker.look(), "it may read both")


def test_the_command_for_a_gate_answers_whether_the_operator_may_open_it(
    scene: Scene, checker: Checker, deploy: Callable[..., object]
) -> None:
    """`kubectl auth can-i patch pods/status` asks for a Pod called `status`, so nearly everybody is answered no."""
    replica = scene.start("--leader-ttl=60").wait_leading()
    deploy()
    replica.process.pause()
    scene.pod(gates=[GATE])
    command = wait_until(lambda: checker.look().get("GE0602", {}), "the closed gate is found")["remedy"]
    asked = ["bash", "-c", command]
    assert subprocess.run(asked, env=checker.environ, capture_output=True, text=True, check=False).stdout == "no\n"
    user = f"system:serviceaccount:{scene.namespace}:grpc-etcd-operator"
    scene.api.kubectl("create", "role", "gates", "-n", scene.namespace, "--verb=patch", "--resource=pods/status")
    scene.api.kubectl("create", "rolebinding", "gates", "-n", scene.namespace, "--role=gates", f"--user={user}")

    def answer() -> str:
        return subprocess.run(asked, env=checker.environ, capture_output=True, text=True, check=False).stdout

    wait_until(lambda: answer() == "yes\n", "it may")


def test_an_operator_in_a_dry_run_is_named(scene: Scene, checker: Checker, deploy: Callable[..., object]) -> None:
    scene.apply()
    scene.pod(gates=[GATE])
    deploy(dryRun=True)
    ready = {"status": {"replicas": 2, "readyReplicas": 2}}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(ready))
    scene.api.kubectl("patch", "deploy/grpc-etcd-operator", "-n", scene.namespace, *patch)
    found = checker.look()
    assert found["GE0501"]["problem"].endswith("it runs with dryRun=true, so it writes nothing")
    assert {found[code]["remedy"].split(" --set ")[1] for code in ("GE0501", "GE0601")} == {"dryRun=false"}
    assert not {"GE0502", "GE0904"} & found.keys()


def test_a_dead_leader_and_what_differs_since(scene: Scene, checker: Checker) -> None:
    replica = scene.start("--leader-ttl=3", "--lease-ttl=600").wait_leading()
    scene.apply()
    unready, gone = scene.pod(), scene.pod()
    scene.registry.wait_addresses(unready.address, gone.address)
    assert not {"GE0501", "GE0103", "GE0104", "GE0105"} & checker.look().keys()
    replica.process.kill()
    wait_until(lambda: scene.client.get(leader_key(scene.cluster)) is None, "its lease has ended")
    scene.kubelet.unready(unready)
    scene.api.client.delete(gone.item, grace_seconds=0)
    late = scene.pod()
    found = checker.look()
    assert late.name in found["GE0103"]["problem"]
    assert unready.address in found["GE0104"]["problem"]
    assert (found["GE0105"]["subject"], gone.address in found["GE0105"]["problem"]) == (pod_subject(scene, gone), True)
    assert found["GE0501"]["subject"] == "registry default"
    scene.start().wait_leading()
    scene.registry.wait_addresses(late.address)
    wait_until(lambda: not {"GE0501", "GE0103", "GE0104", "GE0105"} & checker.look().keys(), "all is well again")


def pod_subject(scene: Scene, pod: Pod) -> str:
    return f"Pod {scene.namespace}/{pod.name}"


def test_a_gated_pod_that_whoever_leads_does_not_see(scene: Scene, checker: Checker) -> None:
    scene.start("--pod-selector=tier=grpc").wait_leading()
    pod = scene.pod(gates=[GATE])
    found = checker.wait("GE0602", "tier=grpc", "podSelector")
    assert "--show-labels" in found["remedy"]
    scene.api.client.patch(pod.item, {"metadata": {"labels": {"tier": "grpc"}}})
    wait_until(lambda: "GE0602" not in checker.look(), "its gate is open")
    other = f"{scene.namespace}-unserved"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    scene.pod(namespace=other, gates=[GATE])
    found = wait_until(lambda: checker.look("-n", other).get("GE0602", {}), "it is found")
    assert f"the leader serves only {scene.namespace}" in found["problem"]
    assert f"'watchNamespaces={{{scene.namespace},{other}}}'" in found["remedy"]


def test_a_namespace_that_whoever_leads_does_not_serve(scene: Scene, checker: Checker) -> None:
    scene.start().wait_leading()
    other = f"{scene.namespace}-unserved"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    scene.apply("lonely", other)
    found = checker.look("-n", other)["GE0511"]
    assert f"the leader serves only {scene.namespace}" in found["problem"]
    assert f"'watchNamespaces={{{scene.namespace},{other}}}'" in found["remedy"]
    assert "GE0511" not in checker.look()


@pytest.fixture
def nobody(scene: Scene) -> str:
    """A ServiceAccount without any right, as its kubeconfig."""
    metadata = {"name": "nobody", "namespace": scene.namespace}
    scene.api.client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    return str(scene.api.service_account_kubeconfig(scene.namespace, "nobody"))


def test_what_the_caller_may_not_read_is_named_with_the_role_that_allows_it(
    scene: Scene, checker: Checker, nobody: str
) -> None:
    scene.start().wait_leading()
    scene.apply(port="grcp")
    scene.pod()
    scene.wait_condition("Accepted", "False", "PortNotFound")
    user = f"system:serviceaccount:{scene.namespace}:nobody"
    _, output, _ = checker.run("-o", "json", KUBECONFIG=nobody)
    denied = [each for each in json.loads(output) if each["code"] == "GE0903"]
    assert sorted(each["problem"] for each in denied) == [
        "the caller is not allowed to list grpcservices there",
        "the caller is not allowed to list pods there",
    ]
    services, pods = sorted(denied, key=lambda each: each["problem"])
    checker.type(services["remedy"].replace("USER", user))
    found = wait_until(lambda: checker.look(KUBECONFIG=nobody).get("GE0201", {}), "the operator's word is seen")
    assert found["problem"].startswith("PortNotFound"), "the Pods may not be read: it is the operator's word"
    checker.type(pods["remedy"].replace("USER", user))
    wait_until(lambda: "they have grpc" in checker.look(KUBECONFIG=nobody)["GE0201"]["problem"], "it sees the Pods")
    assert "GE0904" in checker.look(KUBECONFIG=nobody)


def test_manifests_are_checked_before_they_are_applied(scene: Scene, checker: Checker, tmp_path: Path) -> None:
    other = f"{scene.namespace}-first"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    scene.apply("greeter", other)
    scene.pod()
    spec = {
        "selector": {"matchLabels": {"app": "gretter"}},
        "port": "GRPC",
        "wieght": 5,
        "drain": {"mode": "Disabel"},
    }
    service = {"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": {"name": "greeter"}}
    file = tmp_path / "greeter.yaml"
    file.write_text(yaml.safe_dump({**service, "spec": spec}))
    found = checker.look("-f", str(file))
    assert found.keys() == {"GE0101", "GE0308", "GE0801", "GE0802"}
    assert found["GE0101"]["remedy"] == f"In {file}: set spec.selector.matchLabels.app to greeter"
    assert found["GE0802"]["remedy"] == f"In {file}: write weight for wieght"
    good = {"selector": {"matchLabels": {"app": "greeter"}}, "name": "mine"}
    file.write_text(yaml.safe_dump({**service, "spec": good}))
    assert checker.look("-f", str(file)) == {}
    scene.api.kubectl("apply", "--dry-run=server", "-n", scene.namespace, "-f", str(file))
    file.write_text(yaml.safe_dump_all([{**service, "spec": {**good, "port": "http"}}, deployment("rpc")]))
    found = checker.look("-f", str(file), KUBECONFIG="no.kubeconfig")
    assert found["GE0201"]["remedy"] == f"In {file}: set spec.port to rpc"


# Changes of a manifest: what the API server refuses has an error, what it takes has none.
REFUSED: list[Any] = [
    {"selector": {}},
    {"selector": None},
    {"serviceRef": {"name": "cart"}},
    *({"selector": None, "serviceRef": each} for each in ({}, {"name": "Cart"}, {"name": "c" * 64}, {"names": "c"})),
    *({"port": each} for each in (0, 65_536, "GRPC", "80", "", "-a", True, 1.5, "a" * 16)),
    *({"weight": each} for each in (-1, 10_001, "5", True)),
    {"selector": {"matchLabels": {}}},
    {"selector": {"matchLabels": {"a": 1}}},
    {"selector": []},
    {"selector": "app"},
    {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
    {"selector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
    {"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
    *({"layouts": each.split()} for each in ("", "jupitr", "jupiter jupiter")),
    {"layouts": "jupiter"},
    *({"registries": each.split()} for each in ("", "A", "a a")),
    *({"drain": {"mode": each}} for each in ("delete", 1)),
    *({"name": each} for each in ("", "a/b", "a b", 7)),
    {"policy": {"loadBalancing": {"type": "Random"}}},
    {"policy": {"loadBalancing": {"type": "RoundRobin", "hashHeader": "x"}}},
    {"policy": {"retry": {"attempts": 6}}},
    {"metadata": {"a": 1}},
    {"enable": "yes"},
    {"scheme": "GRPC"},
    {"routes": [{"id": "r"}]},
    {"routes": [{"id": "r", "method": "/a.B/C"}]},
    {"routes": [{"id": "r", "method": "/a.B/C", "groups": {"g": 1}}] * 2},
    {"routes": [{"id": "r", "method": "/a.B/C", "groups": {"g": 1}}], "layouts": ["kratos"]},
    {"unknown": 1},
    {"selector": {"matchLabels": {"a" * 318: "b"}}},
    {"metadata": {"a" * 318: "b"}},
    {"policy": {"matchMetadata": {"a" * 318: "b"}}},
    {"routes": [{"id": "r", "method": "/a.B/C", "groups": {"a" * 254: 1}}]},
    {"routes": [{"id": "r", "method": "/a.B/C", "addresses": {"a" * 260: 1}}]},
]
TAKEN: list[Any] = [
    {"selector": None, "serviceRef": {"name": "1-cart"}},
    *({"port": each} for each in (1, 65_535, "grpc", "a-1", "1a")),
    *({"weight": each} for each in (0, 10_000)),
    {"selector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["greeter"]}]}},
    {"layouts": ["jupiter", "kratos"], "registries": ["a-1"], "drain": {"mode": "Disable"}},
    {"policy": {"loadBalancing": {"type": "RingHash", "hashHeader": "x-user"}, "retry": {"attempts": 3}}},
    {"routes": [{"id": "r", "method": "/a.B/C", "groups": {"g": 1}}]},
    {"metadata": {"a" * 317: "1"}, "enable": False, "publishNotReady": True, "metricsPort": "metrics"},
]


def test_manifests_are_judged_as_the_api_server_judges_them(scene: Scene, checker: Checker, tmp_path: Path) -> None:
    specs = {f"x-{number}": spec for number, spec in enumerate([*REFUSED, *TAKEN])}
    items = [manifest(name, scene.namespace, spec) for name, spec in specs.items()]
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"kind": "List", "items": items}))
    _, output, _ = checker.run("-f", str(file), "--no-kubernetes", "-o", "json")
    found = {each["subject"].rpartition(" ")[2] for each in json.loads(output) if each["code"] in REFUSED_CODES}
    refused = {name for name, item in zip(specs, items, strict=True) if is_refused(scene, item)}
    assert {name: specs[name] for name in found ^ refused} == {}
    assert len(refused) == len(REFUSED)


def manifest(name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    given = {"selector": {"matchLabels": {"app": "greeter"}}} | spec
    whole = {name: value for name, value in given.items() if value is not None}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": metadata, "spec": whole}


def is_refused(scene: Scene, item: dict[str, Any]) -> bool:
    where = f"/apis/grpc-etcd.dev/v1alpha1/namespaces/{scene.namespace}/grpcservices"
    try:
        scene.api.client.call("POST", f"{where}?dryRun=All&fieldValidation=Strict", item)
    except ApiError as error:
        return error.status in {400, 422}
    return False


def deployment(port: str) -> dict[str, Any]:
    container = {"name": "greeter", "image": "x", "ports": [{"name": port, "containerPort": 50051}]}
    template = {"metadata": {"labels": {"app": "greeter"}}, "spec": {"containers": [container]}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"template": template}}


def test_a_service_in_order_gives_no_error_but_that_pods_here_have_loopback_addresses(
    scene: Scene, checker: Checker
) -> None:
    scene.start().wait_leading()
    pod = scene.pod()
    scene.apply()
    scene.registry.wait_addresses(pod.address)
    found = checker.look("greeter")
    assert [each["code"] for each in found.values() if each["severity"] != "note"] == ["GE0706"]
    assert "GE0905" in checker.look("nobody")


def test_it_waits_until_there_is_no_error_and_no_longer_than_it_may(scene: Scene, checker: Checker) -> None:
    scene.apply(enable=False)  # so that its Pods' loopback addresses are no error
    where = ("-n", scene.namespace, "--wait")
    code, output, errors = checker.run(*where, "--timeout", "1")
    assert (code, "error GE0501" in output) == (1, True)
    assert errors.startswith("waiting: GE"), "what it waits for is reported on standard error"
    with subprocess.Popen(
        [str(BIN / "grpc-etcd"), "check", *where, "--timeout", "100"],
        env=checker.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as waiting:
        scene.start().wait_leading()
        output, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, output
    assert "No error found." in output


def test_it_is_a_plugin_of_kubectl(scene: Scene, checker: Checker) -> None:
    assert shutil.which("kubectl-grpc_etcd", path=str(BIN))
    scene.apply(selector={"matchLabels": {"app": "gretter"}})
    scene.pod()
    code, output, _ = checker.run("-n", scene.namespace, program="kubectl grpc-etcd")
    assert (code, "error GE0101: GrpcService" in output) == (1, True)


# As in a container: the token, the authority and the namespace are mounted, and two variables name the server.
IN_A_POD = """
mount -t tmpfs none /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
cp token ca.crt namespace /var/run/secrets/kubernetes.io/serviceaccount
exec grpc-etcd check -o json
"""


def test_in_a_pod_the_service_account_is_used(scene: Scene, checker: Checker, nobody: str, tmp_path: Path) -> None:
    scene.apply(selector={"matchLabels": {"app": "gretter"}})
    config = json.loads(Path(nobody).read_text())
    (tmp_path / "token").write_text(config["users"][0]["user"]["token"])
    (tmp_path / "ca.crt").write_text(scene.api.authority.ca.read_text())
    (tmp_path / "namespace").write_text(scene.namespace)
    server = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(scene.api.port), "KUBECONFIG": ""}
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", IN_A_POD]
    ended = subprocess.run(
        command, env=checker.environ | server, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare" in ended.stderr:
        pytest.skip("no namespaces may be made here")
    found = {each["subject"] for each in json.loads(ended.stdout) if each["code"] == "GE0903"}
    assert found == {f"namespace {scene.namespace}"}, "it is the account without any right, in its own namespace"


def test_standard_input_and_files_that_are_none(scene: Scene, checker: Checker, tmp_path: Path) -> None:
    item = json.dumps(manifest("greeter", scene.namespace, {"wieght": 1}))
    ended = subprocess.run(
        ["grpc-etcd", "check", "-f", "-"], env=checker.environ, input=item, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, "spec.wieght: there is no such field" in ended.stdout) == (1, True)
    for text in ("a: [", "kind: Deployment", ""):
        (tmp_path / "x.yaml").write_text(text)
        assert "GE0803" in checker.look("-f", str(tmp_path / "x.yaml"))


def test_either_side_alone_and_neither(scene: Scene, checker: Checker, tmp_path: Path) -> None:
    scene.apply(selector={"matchLabels": {"app": "gretter"}})
    scene.pod()
    alone = checker.look(GRPC_ETCD_ENDPOINTS="")
    assert {"GE0906", "GE0101"} <= alone.keys()
    nobody = f"127.0.0.1:{free_port()}"
    assert {"GE0401", "GE0101"} <= checker.look(GRPC_ETCD_ENDPOINTS=nobody).keys()
    config = json.loads(scene.api.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    away = tmp_path / "away.kubeconfig"
    away.write_text(json.dumps(config))
    code, output, _ = checker.run("-o", "json", KUBECONFIG=str(away))
    assert (code, "GE0901" in output) == (1, True), "nothing is registered, which etcd shows"
    code, output, _ = checker.run("-o", "json", KUBECONFIG=str(away), GRPC_ETCD_ENDPOINTS=nobody)
    assert (code, "GE0901" in output, "GE0401" in output) == (3, True, True)
    code, output, _ = checker.run("-A", "-o", "json", KUBECONFIG=str(away), GRPC_ETCD_ENDPOINTS=nobody)
    assert (code, "GE0902" in output) == (3, True)
    code, _, errors = checker.run(KUBECONFIG="no.kubeconfig", GRPC_ETCD_ENDPOINTS="")
    assert (code, "GRPC_ETCD_ENDPOINTS is not set" in errors) == (2, True)
