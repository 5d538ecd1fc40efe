"""What the client library reads from its environment, and the only module that does.

Every setting is an argument of `Registry` too; the environment is read only by `Registry.from_environ`, by
`grpc_etcd.insecure_channel("etcd:///name")` and by the command line, and in each case when they are called.
"""

import difflib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from grpc_etcd import options
from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd.registry.keywords import unknown_option

PREFIX = "GRPC_ETCD_"
OPERATORS_PREFIX = f"{PREFIX}OPERATOR_"
ENDPOINTS_FAULT = f"{PREFIX}ENDPOINTS is not set: give etcd's addresses, such as etcd:2379"
_BOOTSTRAP_FILE = "GRPC_XDS_BOOTSTRAP"
_BOOTSTRAP_TEXT = "GRPC_XDS_BOOTSTRAP_CONFIG"
_OUR_NODE = "grpc-etcd/"
_COMPLETE = f"{PREFIX}COMPLETE"  # of the command line's completion
_ALIKE = 0.75  # arbitrary: PREFX and TIMEOUT_S are alike, SERVICE_PORT and PORT, as Kubernetes sets, like none
_WARNED: set[str] = set()  # variables that were logged: once in a process
_LOG = logging.getLogger("grpc_etcd")


class SettingsError(ValueError):
    """One or more settings are invalid; `faults` has a sentence for each, with the name of the variable."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults

    def __reduce__(self) -> tuple[type["SettingsError"], tuple[tuple[str, ...]]]:
        """Make a copy, or the error of another process, from the faults: what Python goes by is the joined text."""
        return type(self), (self.faults,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The settings of one registry, as read from the environment."""

    endpoints: str = ""  # GRPC_ETCD_ENDPOINTS: host:port or URLs, separated by commas
    prefix: str | None = None  # GRPC_ETCD_PREFIX: where the layout has one; None is the layout's default
    layouts: tuple[str, ...] = ("jupiter",)  # GRPC_ETCD_LAYOUTS: names separated by commas, the preferred one first
    name: str | None = None  # GRPC_ETCD_NAME: how this registry is called in targets
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""  # read again at each login
    ca: str = ""  # files in PEM form, read again for each connection; or PEM itself
    cert: str = ""
    key: str = field(default="", repr=False)  # a private key, where it is PEM itself
    server_name: str = ""  # what every server's certificate must name; empty: the host of its endpoint
    zone: str = ""  # where this client runs
    region: str = ""
    cluster: str = ""  # in which Kubernetes cluster, as the endpoints' metadata `cluster` says
    client_id: str = ""  # chooses this client's subset of large sets; default: the host's name
    cache_dir: str = ""  # where last good sets are kept for cold starts; empty: nowhere
    pod_ip: str = ""  # POD_IP: what a server that registers itself is reached by
    timeout: float = 5.0  # GRPC_ETCD_TIMEOUT: seconds that etcd may take for one answer
    # GRPC_ETCD_STATIC: services at fixed addresses, `greeter=localhost:50051;users=localhost:50061,localhost:50062`
    static: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)


def read_settings(
    environ: Mapping[str, str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    find_more: "Callable[[ClientSettings], Iterable[str]]" = lambda _: (),
    **overrides: Any,
) -> ClientSettings:
    """Read the environment; an override that is not None goes before it. Raises SettingsError with every fault.

    `defaults` count where neither of these says which etcd is meant. `find_more` adds faults that this module cannot
    know of. A keyword that is not a setting is a TypeError.
    """
    known = [field.name for field in fields(ClientSettings)]
    if unknown := unknown_option("the settings of a registry", overrides, known):
        raise TypeError(unknown)
    source = os.environ if environ is None else environ
    _warn_of_misspelt(source)
    names = {field.name: f"{PREFIX}{field.name.upper()}" for field in fields(ClientSettings)} | {"pod_ip": "POD_IP"}
    # A file that became a variable, as of a Secret, often ends with a line break, which belongs to no value.
    given = {name: source.get(variable, "").rstrip("\r\n") for name, variable in names.items()}
    found: dict[str, Any] = {name: value for name, value in given.items() if value}
    found |= {name: value for name, value in overrides.items() if value is not None}
    found = found if found.get("endpoints") else {**(defaults or {}), **found}
    unreadable = _read_texts(found)
    chosen = ClientSettings(**found)
    if faults := (*unreadable, *_faults(chosen), *find_more(chosen)):
        raise SettingsError(faults)
    return chosen


def _warn_of_misspelt(source: Mapping[str, str]) -> None:
    """Log once which variables look like one of ours; others may have the prefix too, as of a Service `grpc-etcd`."""
    known = [f"{PREFIX}{each.name.upper()}" for each in fields(ClientSettings)] + [_COMPLETE]
    for name in source:
        if not name.startswith(PREFIX) or name.startswith(OPERATORS_PREFIX) or name in {*known, *_WARNED}:
            continue
        bare = name.removeprefix(PREFIX)
        near = difflib.get_close_matches(bare, [each.removeprefix(PREFIX) for each in known], n=1, cutoff=_ALIKE)
        near = [f"{PREFIX}{each}" for each in near] or [each for each in known if name.startswith(f"{each}_")]
        if near:
            _WARNED.add(name)
            _LOG.warning(
                "The variable %s is not read; did you mean %s?", name, near[0], extra={"event": "unknown_variable"}
            )


def read_operators_variables(names: Iterable[str]) -> dict[str, str]:
    """Return those of these settings that the operator's own variables hold, as in the operator's container."""
    found = {name: os.environ.get(f"{OPERATORS_PREFIX}{name.upper()}", "") for name in names}
    return {name: value for name, value in found.items() if value}


def _read_texts(found: dict[str, Any]) -> list[str]:
    """Replace texts by what they say; what cannot be read is left out, and reported."""
    faults = []
    if isinstance(names := found.get("layouts"), str):
        found["layouts"] = tuple(name.strip() for name in names.split(",") if name.strip())
    elif not isinstance(names, Iterable | None):
        raise TypeError(f"layouts: {names!r} is neither a layout's name nor a sequence of names")
    for name, read in (("timeout", float), ("static", options.parse_static)):
        if isinstance(text := found.get(name), str):
            try:
                found[name] = read(text)
            except ValueError as error:
                del found[name]
                shown = f"{text!r} is not a number of seconds" if name == "timeout" else error
                faults.append(f"{PREFIX}{name.upper()}: {shown}")
    return faults


def _faults(chosen: ClientSettings) -> list[str]:
    faults = []
    if not chosen.endpoints and not chosen.static:
        faults.append(ENDPOINTS_FAULT)
    if fault := options.timeout_fault(chosen.timeout):
        faults.append(f"{PREFIX}TIMEOUT: {fault}")
    if fault := options.pod_ip_fault(chosen.pod_ip):
        faults.append(f"POD_IP: {fault}")
    if not chosen.layouts:
        faults.append(f"{PREFIX}LAYOUTS is empty; the layouts are {', '.join(LAYOUT_NAMES)}")
    faults += [
        f"{PREFIX}LAYOUTS: there is no layout {name!r}; the layouts are {', '.join(LAYOUT_NAMES)}"
        for name in chosen.layouts
        if name not in LAYOUT_NAMES
    ]
    if bool(chosen.cert) != bool(chosen.key):
        faults.append(f"{PREFIX}CERT and {PREFIX}KEY belong together: set both or none")
    if chosen.password and chosen.password_file:
        faults.append(f"{PREFIX}PASSWORD and {PREFIX}PASSWORD_FILE exclude each other")
    if (chosen.password or chosen.password_file) and not chosen.user:
        faults.append(f"{PREFIX}USER is not set, but a password is")
    if chosen.user and not (chosen.password or chosen.password_file):
        faults.append(
            f"{PREFIX}USER is set, but no password: set {PREFIX}PASSWORD_FILE (--password-file) or {PREFIX}PASSWORD"
        )
    return faults


# The registry that is in for the one of the environment, for tests; as the environment, it is the process's.
_STAND_INS: list[object] = []


@contextmanager
def standing_in(registry: object) -> Iterator[None]:
    """Let `Registry.from_environ` give what follows the same as this registry, for as long as the block runs."""
    _STAND_INS.append(registry)
    try:
        yield
    finally:
        _STAND_INS.remove(registry)


def stand_in() -> object | None:
    """Return the registry that is in for the environment's."""
    return _STAND_INS[-1] if _STAND_INS else None


def named_kubeconfigs() -> tuple[Path, ...]:
    """Return the kubeconfig files that KUBECONFIG names, as kubectl reads it."""
    return tuple(Path(each) for each in os.environ.get("KUBECONFIG", "").split(os.pathsep) if each)


def in_cluster_server() -> str:
    """Return the URL of the API server that a Pod is given; empty outside of a cluster."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    return f"https://{f'[{host}]' if ':' in host else host}:{port or 443}" if host else ""


def host_name() -> str:
    """Return the name of this host, in Kubernetes the Pod's."""
    return socket.gethostname()


def read_xds_bootstrap() -> str | None:
    """Return the application's own xDS bootstrap, if it has one; gRPC prefers the file (gRFC A27).

    One that an outer process of this library left in the environment is none.
    """
    if path := os.environ.get(_BOOTSTRAP_FILE):
        return Path(path).read_text(encoding="utf-8")
    text = os.environ.get(_BOOTSTRAP_TEXT)
    return None if not text or _is_ours(text) else text


def write_xds_bootstrap(text: str) -> None:
    """Set what gRPC will read. Child processes inherit it; `read_xds_bootstrap` explains to them whose it is."""
    os.environ.pop(_BOOTSTRAP_FILE, None)
    os.environ[_BOOTSTRAP_TEXT] = text


def _is_ours(text: str) -> bool:
    try:
        return str(json.loads(text)["node"]["id"]).startswith(_OUR_NODE)
    except (ValueError, KeyError, TypeError):
        return False
