"""All settings of the operator: one table, one frozen object, one place that reads the environment.

A setting is given as a flag, as an environment variable or in a YAML file; the first of these that names it wins. What
belongs to one registry is in the file below `registries`, by the registry's name; the flags and variables speak of
the registry `default`. Every fault is found before any is reported, so that an admin fixes them all in one go.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

VARIABLE_PREFIX = "GRPC_ETCD_OPERATOR_"
DEFAULT_REGISTRY = "default"
DIRECT, KOPF = "direct", "kopf"  # who delivers Pods
LAST_PORT = 65_535
# Variables that Kubernetes itself sets for a Service called grpc-etcd-operator.
_SERVICE_LINKS = re.compile(r"GRPC_ETCD_OPERATOR_((.*_)?SERVICE_HOST|(.*_)?SERVICE_PORT(_.*)?|(.*_)?PORT(_\d+_.*)?)")


class UnusableError(Exception):
    """Something that waiting cannot help; the text says what to fix."""


class SettingsError(Exception):
    """The settings cannot be used; `faults` holds one sentence for each thing to fix."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """How to reach one etcd cluster that holds a registry. Files are read again whenever they change."""

    name: str
    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    user: str = ""
    password_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that an admin decides. No namespaces means all of them, no cluster id the UID of kube-system.

    `prefix` is the key prefix of layouts that have one; None leaves each layout its own.
    """

    registries: tuple[RegistrySettings, ...]
    cluster_id: str = ""
    prefix: str | None = None
    allowed_prefixes: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    pod_selector: str = ""
    pod_watch: str = KOPF
    shared_names: bool = False
    lease_ttl_seconds: int = 300
    leader_ttl_seconds: int = 5
    identity: str = ""
    installation: str = ""
    metrics_port: int = 8080
    dry_run: bool = False
    log_level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table: `read` turns text into a value or raises ValueError with the reason."""

    name: str
    field: str
    read: Callable[[str], Any]
    help: str
    default: str = ""
    is_many: bool = False
    is_flag: bool = False
    of_registry: bool = False

    @property
    def flag(self) -> str:
        """Return the command line's spelling."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """Return the environment's spelling."""
        return VARIABLE_PREFIX + self.name.removeprefix("etcd-").replace("-", "_").upper()

    @property
    def key(self) -> str:
        """Return the file's spelling."""
        first, *others = (self.name.removeprefix("etcd-") if self.of_registry else self.name).split("-")
        first = {"namespace": "namespaces"}.get(first, first)
        others = [{"prefix": "prefixes"}.get(other, other) if self.is_many else other for other in others]
        return first + "".join(word.capitalize() for word in others)


def _number(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"it must be a whole number from {low} to {high}")
        return int(text)

    return read


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("it must be true or false")
    return text.lower() in ("true", "1", "yes")


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"it must be one of {', '.join(words)}")
        return text

    return read


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"it must be {what}")
        return text

    return read


def _prefix(text: str) -> str:
    prefix = _matching(r"[^\s\x00-\x1f\x7f]+", "a key prefix without whitespace")(text).strip("/")
    if prefix.partition("/")[0] == "grpc-etcd":
        raise ValueError("keys below /grpc-etcd/ are the operator's own; choose another prefix")
    return prefix


def _allowed_prefix(text: str) -> str:
    if not (prefix := _prefix(text)):
        raise ValueError("it must name a prefix; below it, and nowhere else, GrpcServices may choose their own")
    return prefix


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError("there is no such file; mount it or correct the path")
    return path


def _endpoints(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if faulty := next((part for part in found if not _is_endpoint(part)), None):
        raise ValueError(f"{faulty!r} is not of the form host:port")
    return found


def _is_endpoint(text: str) -> bool:
    match = re.fullmatch(r"(https?://)?(\[[0-9a-fA-F:.]+\]|[^:/\s\[\]]+):([0-9]{1,5})/?", text)
    return match is not None and 0 < int(match[3]) <= LAST_PORT


_DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="etcd-endpoints",
        field="endpoints",
        read=_endpoints,
        of_registry=True,
        help="etcd's members, as host:port, separated by commas. Required.",
    ),
    Setting(
        name="prefix",
        field="prefix",
        read=_prefix,
        help="Key prefix for the layouts that have one; a GrpcService may set another one if --allowed-prefix allows "
        "it. Default: each layout's own.",
    ),
    Setting(
        name="allowed-prefix",
        field="allowed_prefixes",
        read=_allowed_prefix,
        is_many=True,
        help="A prefix that GrpcServices may use as spec.prefix, including everything below it; repeatable. Default: "
        "only the operator's own prefix and the layouts' own.",
    ),
    Setting(
        name="etcd-ca",
        field="ca",
        read=_file,
        of_registry=True,
        help="File with the CA certificates by which etcd's certificate is verified; enables TLS.",
    ),
    Setting(
        name="etcd-cert",
        field="cert",
        read=_file,
        of_registry=True,
        help="File with the client certificate for mutual TLS; needs --etcd-key.",
    ),
    Setting(
        name="etcd-key",
        field="key",
        read=_file,
        of_registry=True,
        help="File with the client certificate's private key.",
    ),
    Setting(
        name="etcd-server-name",
        field="server_name",
        read=_matching(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?", "a DNS name or an IP address"),
        of_registry=True,
        help="The name in the certificate of every etcd member. Default: the host of each endpoint.",
    ),
    Setting(
        name="etcd-user", field="user", read=str, of_registry=True, help="The etcd user; needs --etcd-password-file."
    ),
    Setting(
        name="etcd-password-file",
        field="password_file",
        read=_file,
        of_registry=True,
        help="File with the etcd user's password; read again when it changes.",
    ),
    Setting(
        name="cluster-id",
        field="cluster_id",
        read=_matching(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", "1 to 63 letters, digits, '-', '.' or '_'"),
        help="The name that distinguishes this cluster's records from those of other clusters. "
        "Default: the UID of the namespace kube-system.",
    ),
    Setting(
        name="namespace",
        field="namespaces",
        read=_matching(_DNS_LABEL, "a namespace's name"),
        is_many=True,
        help="A namespace to watch; repeatable. Default: all namespaces.",
    ),
    Setting(
        name="pod-selector",
        field="pod_selector",
        read=str,
        help="A label selector; the API server sends only Pods that match it. Keys of Pods that a new selector "
        "excludes are deleted, unless that would be most of them. Default: all Pods.",
    ),
    Setting(
        name="pod-watch",
        field="pod_watch",
        read=_one_of(DIRECT, KOPF),
        default=KOPF,
        help="How Pods are watched: `kopf` uses Kopf handlers after a list in protobuf, `direct` is the operator's own "
        "list and watch. Both register the same Pods; `direct` takes less CPU for each change.",
    ),
    Setting(
        name="allow-shared-names",
        field="shared_names",
        read=_truth,
        is_flag=True,
        default="false",
        help="Allow GrpcServices of several namespaces to share one name in the registry.",
    ),
    Setting(
        name="lease-ttl",
        field="lease_ttl_seconds",
        read=_number(10, 3600),
        default="300",
        help="Lease TTL in seconds: after the last replica has stopped, keys expire in the last third of this time.",
    ),
    Setting(
        name="leader-ttl",
        field="leader_ttl_seconds",
        read=_number(3, 60),
        default="5",
        help="Leader lease TTL in seconds: a standby takes over this long after the leader has stopped responding.",
    ),
    Setting(
        name="identity",
        field="identity",
        read=_matching(r"[^\s\x00-\x1f\x7f]{1,253}", "1 to 253 characters without whitespace"),
        help="Name of this replica that survives restarts of its container, such as the Pod's UID: a leader that "
        "restarts then resumes leadership at once. Must be unique. Default: a new name for each process, so that "
        "after a crash of the leader its lease must expire first.",
    ),
    Setting(
        name="installation",
        field="installation",
        read=_matching(r"[^\s\x00-\x1f\x7f]{1,253}", "1 to 253 characters without whitespace"),
        help="Name of this installation, such as the namespace/name of the Helm release, by which its replicas "
        "recognize each other even while an upgrade changes --namespace or --pod-selector.",
    ),
    Setting(
        name="metrics-port",
        field="metrics_port",
        read=_number(0, LAST_PORT),
        default="8080",
        help="Port for /metrics, /healthz and /readyz; 0: any free port, which is logged.",
    ),
    Setting(
        name="dry-run",
        field="dry_run",
        read=_truth,
        is_flag=True,
        default="false",
        help="Print what would be written, again after each change, and write nothing to etcd or Kubernetes.",
    ),
    Setting(
        name="log-level",
        field="log_level",
        read=_one_of("debug", "info", "warning", "error"),
        default="info",
        help="Minimum log level: debug, info, warning or error.",
    ),
)
OF_REGISTRY = tuple(setting for setting in SETTINGS if setting.of_registry)
OF_OPERATOR = tuple(setting for setting in SETTINGS if not setting.of_registry)

Texts = Mapping[str, Sequence[str]]


def load_settings(flags: Texts, *, config: str = "", environ: Mapping[str, str] | None = None) -> Settings:
    """Read all settings; raise SettingsError with every fault.

    `flags` holds what the command line gave, by setting name. `config` names the YAML file; empty means the variable
    GRPC_ETCD_OPERATOR_CONFIG, and without that no file.
    """
    environ = os.environ if environ is None else environ
    faults: list[str] = list(_unknown_variables(environ))
    document = _read_document(config or environ.get(VARIABLE_PREFIX + "CONFIG", ""), faults)
    source = _Source(flags, environ, document, faults)
    found = {setting.field: value for setting in OF_OPERATOR if (value := source.value(setting)) is not None}
    registries = tuple(_read_registries(source, document, faults))
    if faults:
        raise SettingsError(faults)
    return Settings(registries=registries, **found)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where texts come from, and the list into which their faults go."""

    flags: Texts
    environ: Mapping[str, str]
    document: Mapping[str, Any]
    faults: list[str]

    def value(self, setting: Setting) -> Any:
        """Read a setting of the operator itself; None if nobody gives it."""
        return self._read(setting, *self._given(setting, self.document, setting.key))

    def registry_value(self, setting: Setting, name: str, section: Mapping[str, Any]) -> Any:
        """Read a setting of one registry; flags and variables speak of the default registry only."""
        path = f"registries.{name}.{setting.key}"
        if name == DEFAULT_REGISTRY:
            return self._read(setting, *self._given(setting, section, path))
        return self._read(setting, path, _as_texts(section.get(setting.key)))

    def _given(self, setting: Setting, section: Mapping[str, Any], path: str) -> tuple[str, Sequence[str]]:
        if texts := self.flags.get(setting.name):
            return setting.flag, texts
        if text := self.environ.get(setting.variable):
            return setting.variable, text.split(",") if setting.is_many else [text]
        return path, _as_texts(section.get(setting.key))

    def _read(self, setting: Setting, place: str, texts: Sequence[str]) -> Any:
        values = []
        for text in texts if setting.is_many else [",".join(texts)] if texts else []:
            try:
                values.append(setting.read(text.strip()))
            except ValueError as fault:
                self.faults.append(f"{place}={text}: {fault}.")
        if setting.is_many:
            return tuple(dict.fromkeys(values))
        return values[0] if values else None


def _as_texts(raw: object) -> list[str]:
    if raw is None:
        return []
    if isinstance(raw, bool):
        return [str(raw).lower()]
    return [str(entry) for entry in raw] if isinstance(raw, list) else [str(raw)]


def _read_document(path: str, faults: list[str]) -> Mapping[str, Any]:
    if not path:
        return {}
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        faults.append(f"--config={path}: the file cannot be read: {error}.")
        return {}
    if not isinstance(document, dict):
        faults.append(f"--config={path}: the file must hold a mapping of settings.")
        return {}
    faults += _unknown_keys(document, [*(setting.key for setting in OF_OPERATOR), "registries"], "")
    return document


def _read_registries(source: _Source, document: Mapping[str, Any], faults: list[str]) -> Iterator[RegistrySettings]:
    sections = document.get("registries") or {}
    if not isinstance(sections, dict):
        faults.append("registries: it must map each registry's name to its settings.")
        return
    has_default = any(source.flags.get(s.name) or source.environ.get(s.variable) for s in OF_REGISTRY)
    names = [DEFAULT_REGISTRY] if has_default or not sections else []
    for name in dict.fromkeys([*names, *map(str, sections)]):
        section = sections.get(name) or {}
        if not re.fullmatch(_DNS_LABEL, name) or not isinstance(section, dict):
            faults.append(f"registries.{name}: it must be a name of a-z, 0-9 and '-' with a mapping of settings.")
        elif registry := _read_registry(source, name, section, faults):
            yield registry


def _read_registry(
    source: _Source, name: str, section: Mapping[str, Any], faults: list[str]
) -> RegistrySettings | None:
    place = f"registries.{name}."
    faults += _unknown_keys(section, [setting.key for setting in OF_REGISTRY], place)
    known = len(faults)
    found = {s.field: v for s in OF_REGISTRY if (v := source.registry_value(s, name, section)) is not None}
    if len(faults) == known:
        if not found.get("endpoints"):
            where = "--etcd-endpoints" if name == DEFAULT_REGISTRY else f"{place}endpoints"
            faults.append(f"{where} is missing: name the etcd servers as host:port, separated by commas.")
            return None
        faults += _contradictions(found, name)
    return RegistrySettings(name=name, **found) if len(faults) == known else None


def _contradictions(found: Mapping[str, Any], name: str) -> Iterator[str]:
    for one, other in (("cert", "key"), ("key", "cert"), ("user", "password_file"), ("password_file", "user")):
        if found.get(one) and not found.get(other):
            yield (
                f"registry {name}: etcd-{one.replace('_', '-')} is given without etcd-{other.replace('_', '-')}; "
                "give both or neither."
            )
    schemes = {endpoint.partition("://")[0] for endpoint in found["endpoints"] if "://" in endpoint}
    if len(schemes) > 1:
        yield f"registry {name}: etcd-endpoints mixes http and https; use one of them."
    elif "http" in schemes and (found.get("ca") or found.get("cert")):
        yield f"registry {name}: etcd-endpoints says http:// but TLS files are given; use https:// or remove the files."
    if found.get("server_name") and not (found.get("ca") or found.get("cert") or "https" in schemes):
        yield f"registry {name}: etcd-server-name is given but TLS is off; use https:// or give etcd-ca."


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    known = [setting.variable for setting in SETTINGS] + [VARIABLE_PREFIX + "CONFIG"]
    for name in sorted(environ):
        if name.startswith(VARIABLE_PREFIX) and name not in known and not _SERVICE_LINKS.fullmatch(name):
            yield f"{name}: there is no such setting{_nearest(name, known)}"


def _unknown_keys(section: Mapping[Any, Any], known: Sequence[str], place: str) -> Iterator[str]:
    for key in section:
        if key not in known:
            yield f"{place}{key}: there is no such setting{_nearest(str(key), known)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {matches[0]}?" if matches else f"; the settings are {', '.join(known)}."


def reference() -> str:
    """Write the table of all settings as Markdown."""
    head = "| flag | variable | file | default | what it is |\n| --- | --- | --- | --- | --- |\n"
    rows = (
        f"| `{s.flag}` | `{s.variable}` | `{'registries.NAME.' if s.of_registry else ''}{s.key}` "
        f"| {f'`{s.default}`' if s.default else ''} | {s.help} |\n"
        for s in SETTINGS
    )
    return head + "".join(rows)
