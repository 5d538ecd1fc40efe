"""What the objects of the chart say of etcd: where it is, and which Secrets hold what logs in to it. Pure.

Two kinds of objects do: the operator's Deployment, and the ConfigMap for clients, which lies in the clients' own
namespaces. Names of Services in them become what kubectl can forward to.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from grpc_etcd.inspect.findings import kubectl
from grpc_etcd.registry.endpoint import parse_ip

OPERATOR = "GRPC_ETCD_OPERATOR_"
CLIENT = "GRPC_ETCD_"
CONTAINER = "operator"
# How the variables end, and how the settings of this command are called. Files become what is in them.
TEXTS = {"ENDPOINTS": "endpoints", "SERVER_NAME": "server_name", "USER": "user", "PREFIX": "prefix"}
FILES = {"CA": "ca", "CERT": "cert", "KEY": "key", "PASSWORD_FILE": "password"}
PASSWORD_SECRET, PASSWORD_KEY = "grpc-etcd.dev/password-secret", "grpc-etcd.dev/password-key"
PEM = "-----BEGIN "
MEMBER = re.compile(r"-[0-9]+$")  # how the names of a StatefulSet's Pods end
# As the API server words a refusal; kubectl passes it on.
DENIAL = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)


class KeptIn(NamedTuple):
    """The key of a Secret or a ConfigMap in which a file is kept."""

    kind: str
    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """What one object says of etcd. `namespace` is where its names resolve and its Secrets are."""

    subject: str  # the object
    namespace: str
    deployment: str = ""  # of the operator; empty: unknown
    endpoints: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)  # settings, with their values
    files: Mapping[str, KeptIn] = field(default_factory=dict, hash=False)  # settings, with where their values are
    lacking: tuple[str, ...] = ()  # settings whose values are in no Secret and no ConfigMap
    config: KeptIn | None = None  # the operator's settings file, which has other registries too
    serves: tuple[str, ...] = ()  # namespaces; empty: all

    def without(self, given: Iterable[str]) -> "EtcdSettings":
        """Leave out what somebody has given, with what belongs to it."""
        names = {each for name in given for each in TOGETHER.get(name, (name,))}
        return replace(
            self,
            texts={name: text for name, text in self.texts.items() if name not in names},
            files={name: kept for name, kept in self.files.items() if name not in names},
            lacking=tuple(name for name in self.lacking if name not in names),
        )


TOGETHER = {
    **dict.fromkeys(("user", "password", "password_file"), ("user", "password")),
    **dict.fromkeys(("cert", "key"), ("cert", "key")),
}


class Place(NamedTuple):
    """What kubectl may forward to: a Service, or a Pod of it."""

    kind: str
    namespace: str
    name: str

    @property
    def reference(self) -> str:
        """Write it as kubectl takes it."""
        return f"{'svc' if self.kind == 'Service' else 'pod'}/{self.name}"

    @property
    def path(self) -> str:
        """Return where the API server has it."""
        return f"/api/v1/namespaces/{self.namespace}/{self.kind.lower()}s/{self.name}"


def find_places(host: str, namespace: str) -> tuple[Place, ...]:
    """Return what a name may be inside of a cluster, as seen from a namespace; nothing for an address.

    `etcd`, `etcd.infra`, `etcd.infra.svc...` are Services. `etcd-0.etcd`, `etcd-0.etcd.infra` and so on are Pods of a
    StatefulSet; what ends with no number, as `etcd.example.com`, is neither, unless it has `svc` in it.
    """
    labels = host.rstrip(".").split(".")
    if parse_ip(host) or "" in labels:
        return ()
    is_complete = "svc" in labels[1:]
    is_member = bool(MEMBER.search(labels[0]))
    match labels[: labels.index("svc", 1)] if is_complete else labels:
        case [service]:
            return (Place("Service", namespace, service),)
        case [first, second]:
            own = (Place("Pod", namespace, first),) if is_member and not is_complete else ()
            return (Place("Service", second, first), *own)
        case [pod, _, where] if is_complete or is_member:
            return (Place("Pod", where, pod),)
        case _:
            return ()


def is_forwardable(place: Place, item: Mapping[str, Any]) -> bool:
    """Return whether there are Pods behind a place: a Service without a selector may lead out of the cluster."""
    spec = item.get("spec") or {}
    return place.kind == "Pod" or (bool(spec.get("selector")) and spec.get("type") != "ExternalName")


def parse_operator(item: Mapping[str, Any]) -> EtcdSettings | None:
    """Read a Deployment of the operator; None where it does not say where etcd is."""
    metadata = item["metadata"]
    pod, container = _find_container(item)
    variables = {each.get("name"): str(each.get("value") or "") for each in map(_mapping, container.get("env") or ())}
    given = {name: variables.get(f"{OPERATOR}{name}", "") for name in (*TEXTS, *FILES, "CONFIG")}
    if not given["ENDPOINTS"]:
        return None
    files = {name: _find_file(pod, container, given[name]) for name in (*FILES, "CONFIG") if given[name]}
    return EtcdSettings(
        subject=f"Deployment {metadata['namespace']}/{metadata['name']}",
        namespace=str(metadata["namespace"]),
        deployment=str(metadata["name"]),
        endpoints=_split(given["ENDPOINTS"]),
        texts={TEXTS[name]: given[name] for name in TEXTS if name != "ENDPOINTS" and given[name]},
        files={FILES[name]: kept for name, kept in files.items() if name in FILES and kept},
        lacking=tuple(FILES[name] for name, kept in files.items() if name in FILES and not kept),
        config=files.get("CONFIG"),
        serves=tuple(_flags(container.get("args") or (), "--namespace=")),
    )


def parse_registry(operator: EtcdSettings, item: Mapping[str, Any], settings: Mapping[str, str]) -> EtcdSettings:
    """Read one registry of the operator's settings file, as `settings` by this command's names, and its Deployment."""
    pod, container = _find_container(item)
    paths = {name: settings.get(file.lower(), "") for file, name in FILES.items()}
    files = {name: _find_file(pod, container, path) for name, path in paths.items() if path}
    texts = {name: settings[name] for name in ("server_name", "user") if settings.get(name)}
    return replace(
        operator,
        endpoints=_split(settings.get("endpoints", "")),
        texts={**texts, **{name: text for name, text in operator.texts.items() if name == "prefix"}},
        files={name: kept for name, kept in files.items() if kept},
        lacking=tuple(name for name, kept in files.items() if not kept),
    )


def parse_client(item: Mapping[str, Any]) -> EtcdSettings | None:
    """Read a ConfigMap for clients; None where it is another."""
    metadata, data = item["metadata"], _mapping(item.get("data"))
    given = {name: str(data.get(f"{CLIENT}{name}") or "").rstrip("\r\n") for name in (*TEXTS, *FILES)}
    if not given["ENDPOINTS"]:
        return None
    annotations = _mapping(metadata.get("annotations"))
    secret, key = (str(annotations.get(name) or "") for name in (PASSWORD_SECRET, PASSWORD_KEY))
    texts = {TEXTS[name]: given[name] for name in TEXTS if name != "ENDPOINTS" and given[name]}
    inline = {FILES[name]: given[name] for name in FILES if given[name].lstrip().startswith(PEM)}
    paths = (FILES[name] for name in FILES if given[name] and FILES[name] not in inline)  # of files in clients' Pods
    needs_password = bool(given["USER"]) and not secret and not given["PASSWORD_FILE"]
    return EtcdSettings(
        subject=f"ConfigMap {metadata['namespace']}/{metadata['name']}",
        namespace=str(metadata["namespace"]),
        endpoints=_split(given["ENDPOINTS"]),
        texts={**texts, **inline},
        files={"password": KeptIn("Secret", secret, key or "password")} if secret and given["USER"] else {},
        lacking=(*paths, *(("password",) if needs_password else ())),
    )


def _find_container(item: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the Pod's spec in a Deployment of the operator, and its container in it."""
    pod = _mapping(_mapping(_mapping(item.get("spec")).get("template")).get("spec"))
    containers = map(_mapping, pod.get("containers") or ())
    return pod, next((each for each in containers if each.get("name") == CONTAINER), {})


def _find_file(pod: Mapping[str, Any], container: Mapping[str, Any], path: str) -> KeptIn | None:
    """Return what a file in a container is made of; None where that is neither a Secret nor a ConfigMap."""
    mounts = [_mapping(each) for each in container.get("volumeMounts") or ()]
    within = [each for each in mounts if path.startswith(f"{str(each.get('mountPath')).rstrip('/')}/")]
    if not within:
        return None
    mount = max(within, key=lambda each: len(str(each["mountPath"])))
    inside = path[len(str(mount["mountPath"]).rstrip("/")) + 1 :]
    volumes = [_mapping(each) for each in pod.get("volumes") or ()]
    volume = next((each for each in volumes if each.get("name") == mount.get("name")), {})
    for kind, field_name, name in (("Secret", "secret", "secretName"), ("ConfigMap", "configMap", "name")):
        if source := _mapping(volume.get(field_name)):
            keys = {_mapping(each).get("path"): _mapping(each).get("key") for each in source.get("items") or ()}
            return KeptIn(kind, str(source.get(name)), str(keys.get(inside) or inside))
    return None


def choose_operators(found: Iterable[EtcdSettings], namespace: str) -> list[EtcdSettings]:
    """Return the operators that serve a namespace, those that name it first of all; without such, all of them."""
    operators = list(found)
    naming = [each for each in operators if namespace in each.serves]
    return naming or [each for each in operators if not each.serves] or operators


def explain_denial(text: str) -> tuple[str, str] | None:
    """Return which right is missing, and the commands that give it; None where the text is no such refusal."""
    found = DENIAL.search(text)
    if not found:
        return None
    user, verb, resource, group = (found[name] for name in ("user", "verb", "resource", "group"))
    namespace = found["namespace"] or ""
    where = f"in the namespace {namespace}" if namespace else "in all namespaces"
    problem = f"{user} may not {verb} {resource} {where}"
    kind, role = "role" if namespace else "clusterrole", f"{verb}-{resource.replace('/', '-')}"
    full = f"{resource.partition('/')[0]}.{group}{''.join(resource.partition('/')[1:])}" if group else resource
    make = kubectl(namespace, "create", kind, role, f"--verb={verb}", f"--resource={full}")
    bind = kubectl(namespace, "create", f"{kind}binding", role, f"--{kind}={role}", f"--user={user}")
    return problem, f"{make}; {bind}"


def _split(endpoints: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in endpoints.split(",") if each.strip())


def _flags(arguments: Iterable[Any], flag: str) -> Iterable[str]:
    return (str(each).removeprefix(flag) for each in arguments if str(each).startswith(flag))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
