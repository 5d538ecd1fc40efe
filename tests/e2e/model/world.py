"""The world of the model test, and what may happen to it: Pods, GrpcServices, registries, Kubernetes, a hostile tenant.

Two replicas reach the API server and each registry through proxies of their own, so that one may be cut off alone. The
first registry has users; the operator's may be refused a prefix for a while.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from grpc_etcd.etcd import Etcd, EtcdError
from grpc_etcd.etcd.errors import LeaseNotFound
from grpc_etcd_operator.core.leases import lease_id
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from testbed.kubernetes_api import ApiError, make_kubeconfig
from testbed.proxy import TcpProxy
from testbed.replica import RegistryView, Replica
from tests.e2e.conftest import API_VERSION, Scene
from tests.e2e.model.oracle import EVIL, SCOPE_LABEL, expected, gates_due, statuses

STEADY = ("alpha", "beta")
REGISTRIES = {"alpha": ["default"], "beta": ["default", "other"]}
GATE = "grpc-etcd.dev/registered"
OPERATOR, PASSWORD, ROOT = "operator", "secret", "root:root"
PREFIX, OTHER_PREFIX = "/jupiter/", "/grpc-etcd/"
WELL = {
    "registry_up": [1, 1],
    "leader": [0, 1],
    "synced": [0, 1],
    "workqueue_depth": [0, 0],
    "workqueue_in_flight": [0, 0],
    "no_leader_seconds": [0, 0],
    "ready_not_registered": [0, 0],
}
HOSTILE: tuple[Mapping[str, Any], ...] = (
    {"name": "alpha"},
    {"name": "beta", "registries": ["other"]},
    {"name": "alpha", "layouts": ["kratos"], "policy": {"timeout": "50ms"}},
    {"name": "x", "prefix": "jupiter/alpha/providers"},
    {"name": "alpha", "prefix": "jupiter", "metricsPort": 9000},
    {"name": "synced", "prefix": "/grpc-etcd", "layouts": ["go-zero"]},
    {"name": "grpc:alpha", "layouts": ["etcd-naming"], "prefix": "grpc-etcd/owner"},
)
SLIPS: tuple[Mapping[str, Any], ...] = (
    {"port": "no-such-port"},
    {"registries": ["default", "no-such-registry"]},
    {"prefix": "somebody/elses"},
)


class World:
    """Each method whose name begins with an area is one possible event; `heal` undoes what is not meant to last."""

    def __init__(
        self, scene: Scene, etcd: EtcdServer, other: EtcdServer, chance: random.Random, stack: ExitStack
    ) -> None:
        self.scene, self.etcd, self.other, self.chance = scene, etcd, other, chance
        self.api = scene.api
        self.pods: list[Pod] = []
        self.dead: list[Pod] = []
        self.strangers: set[int] = set()  # leases
        self.is_excused = False  # etcd has lost its data: keys are missing, and nobody is to blame
        self._evil = f"{scene.namespace}-{EVIL}"
        self._backups = scene.folder / "backups"
        self._set_up_users()
        self.client = stack.enter_context(Etcd(etcd.endpoints, user="root", password="root"))  # noqa: S106 (a test's)
        self.second = stack.enter_context(Etcd(other.endpoints))
        self.registry, self.second_registry = RegistryView(self.client), RegistryView(self.second)
        servers = (f"127.0.0.1:{self.api.port}", etcd.endpoints, other.endpoints)
        ways = [[stack.enter_context(TcpProxy.start(server)) for server in servers] for _ in range(2)]
        self.replicas = [self._start(*each) for each in ways]
        self.kube, self.first, self.others = ([*each] for each in zip(*ways, strict=True))
        self._make_services()
        self.steady = [self._pod(name, gates=gates) for name in STEADY for gates in ((), (GATE,))]

    # -- how it begins ------------------------------------------------------------------------------------------------

    def _set_up_users(self) -> None:
        admin = self.etcd.enable_auth("root")
        self.etcd.add_user(OPERATOR, PASSWORD, [PREFIX, OTHER_PREFIX], admin=admin)

    def _start(self, kube: TcpProxy, first: TcpProxy, other: TcpProxy) -> Replica:
        folder = self.scene.folder
        number = kube.address.rpartition(":")[2]
        config = folder / f"{number}.kubeconfig"
        config.write_text(
            json.dumps(make_kubeconfig(f"https://{kube.address}", str(self.api.authority.ca), self.api.token))
        )
        (folder / "password").write_text(PASSWORD)
        settings = folder / f"{number}.yaml"
        settings.write_text(json.dumps({"registries": {"other": {"endpoints": other.address}}}))
        flags = [f"--config={settings}", f"--namespace={self._evil}", f"--pod-selector={SCOPE_LABEL}"]
        flags += ["--leader-ttl=3", f"--etcd-user={OPERATOR}", f"--etcd-password-file={folder / 'password'}"]
        return self.scene.start(*flags, etcd=first.address, kubeconfig=config)

    def _make_services(self) -> None:
        self.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self._evil}})
        for name in STEADY:
            self._apply(name)
            wait_until(lambda name=name: self._registered_name(name), f"{name} is accepted")
        self._attack({})
        evil = self.scene.kubelet.create_pod("evil", self._evil, serve=False, labels={"app": EVIL, SCOPE_LABEL: ""})
        self.evil_address = evil.address

    def _registered_name(self, name: str) -> bool:
        return self.scene.condition("Accepted", name)[0] == "True"

    def _apply(self, name: str, **spec: Any) -> None:
        usual = {"selector": {"matchLabels": {"app": name}}, "registries": REGISTRIES.get(name, ["default"])}
        self.scene.apply(name, **(usual | spec))

    def _attack(self, spec: Mapping[str, Any]) -> None:
        self.scene.apply("parked", self._evil, selector={"matchLabels": {"app": EVIL}}, **spec)

    def _pod(self, app: str, **more: Any) -> Pod:
        return self.scene.pod(labels={"app": app, SCOPE_LABEL: ""}, **more)

    def wait_steady(self) -> set[bytes]:
        """Wait until the Pods that stay ready throughout are registered; give their keys."""
        wanted = {f"{PREFIX}{_app(pod)}/providers/grpc://{pod.address}" for pod in self.steady}
        wait_until(lambda: wanted <= self.registry.keys().keys(), "the steady Pods are registered")
        return {key.encode() for key in wanted}

    # -- what may happen ----------------------------------------------------------------------------------------------

    def _any(self) -> Pod | None:
        return self.chance.choice(self.pods) if self.pods else None

    def _key(self) -> bytes | None:
        """A key that is there and belongs to no steady Pod and no tenant who is watched."""
        steady, held = {pod.address for pod in self.steady}, self.registry.keys()
        found = [key for key in held if key.rpartition("://")[2] not in steady and "/parked/" not in key]
        return self.chance.choice(sorted(found)).encode() if found else None

    def pod_comes(self) -> None:
        gates = self.chance.choice(((), (GATE,)))
        app = self.chance.choice((*STEADY, "moody"))
        self.pods.append(self._pod(app, ready=self.chance.random() < 0.8, gates=gates))

    def pod_turns_ready(self) -> None:
        if pod := self._any():
            self.scene.kubelet.ready(pod)

    def pod_turns_not_ready(self) -> None:
        if pod := self._any():
            self.scene.kubelet.unready(pod)

    def pod_is_deleted(self) -> None:
        if pod := self._any():
            self.pods.remove(pod)
            self.scene.kubelet.terminate(pod, self.chance.choice((0, 1)))

    def pod_vanishes_and_its_address_is_used_again(self) -> None:
        if pod := self._any():
            self.pods.remove(pod)
            self.api.client.delete(pod.item, grace_seconds=0)
            self.pods.append(self._pod(_app(pod), ip=pod.ip))

    def pod_gets_a_weight(self) -> None:
        if pod := self._any():
            weight = str(self.chance.randrange(1, 1000))
            self.api.client.patch(pod.item, {"metadata": {"annotations": {"grpc-etcd.dev/weight": weight}}})

    def pod_leaves_the_scope(self) -> None:
        if pod := self._any():
            self._set_scope(pod, None)

    def pod_returns_to_the_scope(self) -> None:
        if pod := self._any():
            self._set_scope(pod, "")

    def _set_scope(self, pod: Pod, value: str | None) -> None:
        self.api.client.patch(pod.item, {"metadata": {"labels": {SCOPE_LABEL: value}}})

    def node_dies(self) -> None:
        """Do what the node lifecycle controller does: set the condition Ready, and nothing else."""
        if (pod := self._any()) and (not pod.gates or self._has_been_ready(pod)):
            self.scene.kubelet.die(pod)

    def _has_been_ready(self, pod: Pod) -> bool:
        """Say whether a Pod has been ready behind its gate for seconds: no node is given up sooner."""
        found = self.api.client.get("v1", "Pod", pod.name, self.scene.namespace)["status"]["conditions"]
        times = {each["type"]: each["lastTransitionTime"] for each in found if each["status"] == "True"}
        before = (datetime.now(UTC) - timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return "Ready" in times and times.get(GATE, before) < before

    def service_changes(self) -> None:
        spec = {"enable": self.chance.random() < 0.8, "metadata": {"turn": str(self.chance.randrange(9))}}
        registries = self.chance.choice((["default"], ["other"], ["default", "other"]))
        self._apply("moody", registries=registries, **spec)

    def service_is_deleted(self) -> None:
        self.scene.delete("moody")

    def service_has_a_slip(self) -> None:
        """Break the spec of a service whose Pods must stay registered all the while."""
        self._apply(self.chance.choice(STEADY), **self.chance.choice(SLIPS))

    def service_is_mended(self) -> None:
        for name in STEADY:
            self._apply(name)

    def tenant_attacks(self) -> None:
        self._attack(self.chance.choice(HOSTILE))

    def tenant_stands_back(self) -> None:
        self._attack({})

    def operator_is_killed(self) -> None:
        self.chance.choice(self.replicas).process.kill()

    def operator_is_stopped(self) -> None:
        self.chance.choice(self.replicas).process.stop()

    def operator_freezes(self) -> None:
        self.chance.choice(self.replicas).process.pause()

    def operator_starts(self) -> None:
        for replica in self.replicas:
            replica.process.resume()
            if not replica.process.is_running:
                replica.start()

    def operator_loses_kubernetes(self) -> None:
        proxy = self.chance.choice(self.kube)
        self.chance.choice((proxy.refuse, proxy.black_hole, proxy.cut))()

    def etcd_is_killed_and_starts(self) -> None:
        self.etcd.kill()
        time.sleep(self.chance.uniform(0.0, 1.5))
        self.etcd.restart()

    def etcd_is_compacted(self) -> None:
        self.etcdctl("compact", str(self.registry.revision()))

    def etcd_loses_its_data(self) -> None:
        self.is_excused = True
        self.etcd.restart(fresh=True)
        self._set_up_users()

    def etcd_is_backed_up(self) -> None:
        shutil.rmtree(self._backups / "etcd", ignore_errors=True)
        self.etcd.save(self._backups / "etcd")

    def etcd_is_restored(self) -> None:
        if (self._backups / "etcd").exists():
            self.is_excused = True
            self.etcd.load(self._backups / "etcd")
            self.grant()

    def etcd_takes_a_permission(self) -> None:
        self.etcdctl("role", "revoke-permission", "--prefix=true", OPERATOR, PREFIX)

    def other_etcd_is_killed_and_starts(self) -> None:
        self.other.kill()
        time.sleep(self.chance.uniform(0.0, 1.5))
        self.other.restart()

    def grant(self) -> None:
        """Give the operator's user all that the documentation says."""
        self.etcdctl("role", "grant-permission", "--prefix=true", OPERATOR, "readwrite", PREFIX)

    def etcdctl(self, *arguments: str) -> None:
        self.etcd.etcdctl(*arguments, user=ROOT, check=False)  # the same revision may be compacted twice

    def _some(self) -> list[TcpProxy]:
        """The ways to a registry, of both replicas or of one."""
        ways = self.chance.choice((self.first, self.others))
        return self.chance.choice((ways, ways[:1], ways[1:]))

    def network_is_cut(self) -> None:
        for proxy in self._some():
            proxy.cut()

    def network_refuses(self) -> None:
        for proxy in self._some():
            proxy.refuse()

    def network_swallows(self) -> None:
        for proxy in self._some():
            proxy.black_hole()

    def network_lasts(self) -> None:
        """Let whatever lasts just now go on until it is noticed, and leaders and watches have been given up."""
        time.sleep(self.chance.uniform(4.0, 9.0))

    def network_heals(self) -> None:
        for proxy in (*self.first, *self.others, *self.kube):
            proxy.heal()

    def stranger_overwrites(self) -> None:
        if key := self._key():
            lease = self.client.lease(600)
            self.strangers.add(lease)
            self.client.put(key, b'{"enable": "nonsense', lease=lease)

    def stranger_deletes(self) -> None:
        if key := self._key():
            self.client.delete(key)

    def stranger_revokes(self) -> None:
        if pod := self._any():
            self.client.revoke(lease_id(self.scene.cluster, pod.uid))

    def apiserver_restarts(self) -> None:
        self.api.restart()

    def apiserver_does_not_answer(self) -> None:
        self.api.pause()
        time.sleep(self.chance.uniform(1.0, 10.0))
        self.api.resume()

    def apiserver_is_backed_up(self) -> None:
        self.api.kill()
        shutil.rmtree(self._backups / "api", ignore_errors=True)
        self.api.etcd.save(self._backups / "api")
        self.api.restart()

    def apiserver_is_restored(self) -> None:
        if (self._backups / "api").exists():
            self.scene.outrun_backup()
            self.scene.restore(self._backups / "api", *self.replicas, overtakes=self.chance.random() < 0.5)

    # -- what must be true --------------------------------------------------------------------------------------------

    def events(self) -> list[Callable[[], None]]:
        """List what may happen, the frequent more than once."""
        weights = {
            "pod": 4, "service": 2, "tenant": 3, "operator": 2, "network": 1, "etcd": 1, "other": 1, "stranger": 2,
            "apiserver": 1, "node": 2,
        }  # fmt: skip
        names = [name for name in sorted(dir(self)) if name.partition("_")[0] in weights and "_" in name]
        return [getattr(self, name) for name in names for _ in range(weights[name.partition("_")[0]])]

    def heal(self) -> None:
        """End every fault; Pods, GrpcServices and what is stored stay as they are."""
        self.api.resume()
        if not self.api.client.is_ready():
            self.api.restart()
        for server in (self.etcd, self.other):
            if not all(member.is_ready() for member in server.members):
                server.restart()
        self.network_heals()
        self.grant()
        self.operator_starts()
        for name in STEADY:
            self._apply(name)

    def difference(self) -> dict[str, Any]:
        """Everything about which the world and the oracle disagree."""
        client = self.api.client
        namespace = self.scene.namespace
        services = client.list(API_VERSION, "GrpcService", namespace)["items"]
        pods = client.list("v1", "Pod", namespace)["items"]
        wrong: dict[str, Any] = {}
        for name, view in (("default", self.registry), ("other", self.second_registry)):
            wrong |= self._registry_difference(name, view, expected(services, pods, name))
        wrong |= {f"gate of {pod}": "closed" for pod in gates_due(services, pods, GATE)}
        wrong |= statuses(services, pods)
        wrong |= self._claims_difference(client.list(API_VERSION, "GrpcService", self._evil)["items"])
        return wrong | self._health_difference()

    def _registry_difference(
        self, name: str, view: RegistryView, wanted_values: Mapping[str, tuple[dict[str, Any], str]]
    ) -> dict[str, Any]:
        cluster = self.scene.cluster
        wanted = {key: (value, lease_id(cluster, uid)) for key, (value, uid) in wanted_values.items()}
        held = {k: (parse(r.value), r.lease) for k, r in view.keys().items() if not k.startswith("/jupiter/parked/")}
        owners = view.keys(f"/grpc-etcd/owner/{cluster}/")
        evil = {record.lease for record in view.keys("/jupiter/parked/").values()}
        unknown = ({record.lease for record in owners.values()} - evil) ^ {lease for _, lease in wanted.values()}
        wrong = {key: (wanted.get(key), held.get(key)) for key in wanted.keys() | held.keys()}
        found: dict[str, Any] = {f"{name}: {key}": pair for key, pair in wrong.items() if pair[0] != pair[1]}
        found |= dict.fromkeys((f"{name}: owner record or lease {each:x}" for each in unknown), "unmatched")
        if view.client.get(f"/grpc-etcd/synced/{cluster}".encode()) is None:
            found[f"{name}: synced key"] = "missing"
        return found

    def _claims_difference(self, hostile: list[dict[str, Any]]) -> dict[str, Any]:
        """A spec of the hostile tenant that reaches for others is not accepted, and has left nothing anywhere."""
        found: dict[str, Any] = {}
        for service in hostile:
            is_harmless = "name" not in service["spec"]
            conditions = {each["type"]: each["status"] for each in service.get("status", {}).get("conditions", ())}
            if conditions.get("Accepted") != str(is_harmless):
                found["hostile GrpcService"] = (service["spec"], conditions)
        if policies := self.registry.keys("/grpc-etcd/policy/"):
            found["policies"] = sorted(policies)
        return found

    def _health_difference(self) -> dict[str, Any]:
        answers = {f"readyz of replica {n}": replica.get("/readyz") for n, replica in enumerate(self.replicas)}
        found: dict[str, Any] = {name: answer for name, answer in answers.items() if answer[0] != 200}
        for registry in ("default", "other"):
            found |= self._metrics_difference(registry)
        return found

    def _metrics_difference(self, registry: str) -> dict[str, Any]:
        """What metrics tell of a registry in which all is well: of both replicas, and of the one that leads."""
        found: dict[str, Any] = {}
        for name, wanted in WELL.items():
            told = sorted(each.metric(f"grpc_etcd_operator_{name}", registry=registry) for each in self.replicas)
            if told != wanted:
                found[f"metric {name} of {registry}"] = told
        return found

    def describe_replicas(self) -> str:
        """Give what the replicas say of themselves."""
        texts = (each.get("/metrics")[1] for each in self.replicas)
        return "\n".join(line for text in texts for line in text.splitlines() if line.startswith("grpc_etcd"))

    def _dismiss_strangers(self) -> None:
        """Let the strangers' leases end: what they put where nobody wanted anything just then would be respected."""
        while self.strangers:
            lease = next(iter(self.strangers))
            with suppress(LeaseNotFound):
                self.client.revoke(lease)
            self.strangers.discard(lease)

    def is_right(self) -> bool:
        """Whether all agree; not yet while a server that has just come back refuses the test itself."""
        try:
            self._dismiss_strangers()
            return not self.difference()
        except (ApiError, EtcdError, OSError, IndexError):
            return False


def _app(pod: Pod) -> str:
    return str(pod.item["metadata"]["labels"]["app"])


def parse(value: bytes) -> Any:
    """Read a value as JSON where it is any."""
    try:
        return json.loads(value)
    except ValueError:
        return value
