"""What the client library is told by its environment: the only module that reads it.

Every setting is an argument of `Registry` too; the environment is read only by `Registry.from_environ`, by
`grpc_etcd.insecure_channel("etcd:///name")` and by the command line, and in each case when they are called.
"""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grpc_etcd.registry.layouts import LAYOUT_NAMES

PREFIX = "GRPC_ETCD_"
_BOOTSTRAP_FILE = "GRPC_XDS_BOOTSTRAP"
_BOOTSTRAP_TEXT = "GRPC_XDS_BOOTSTRAP_CONFIG"
_OUR_NODE = "grpc-etcd/"


class SettingsError(ValueError):
    """One or more settings cannot be used; `faults` has a sentence for each, naming the variable."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The settings of one registry, as read from the environment."""

    endpoints: str = ""  # GRPC_ETCD_ENDPOINTS: host:port or URLs, separated by commas
    prefix: str | None = None  # GRPC_ETCD_PREFIX: where the layout has one; None is the layout's default
    layouts: tuple[str, ...] = ("jupiter",)  # GRPC_ETCD_LAYOUTS: names separated by commas, the preferred one first
    name: str | None = None  # GRPC_ETCD_NAME: how this registry is called in targets
    user: str = ""
    password: str = ""
    password_file: str = ""  # read again at each log-in
    ca: str = ""  # files in PEM form; read again for each connection
    cert: str = ""
    key: str = ""
    zone: str = ""  # where this client runs
    region: str = ""
    client_id: str = ""  # chooses this client's subset of large sets; default: the host's name
    cache_dir: str = ""  # where last good sets are kept for cold starts; empty: nowhere
    pod_ip: str = ""  # POD_IP: what a server that registers itself is reached by


def read_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> ClientSettings:
    """Read the environment; an override that is not None goes before it. Raises SettingsError with every fault."""
    source = os.environ if environ is None else environ
    names = {field.name: f"{PREFIX}{field.name.upper()}" for field in fields(ClientSettings)} | {"pod_ip": "POD_IP"}
    found: dict[str, Any] = {name: source[variable] for name, variable in names.items() if source.get(variable)}
    if "layouts" in found:
        found["layouts"] = tuple(name.strip() for name in found["layouts"].split(",") if name.strip())
    found |= {name: value for name, value in overrides.items() if value is not None}
    chosen = ClientSettings(**found)
    if faults := tuple(_faults(chosen)):
        raise SettingsError(faults)
    return chosen


def _faults(chosen: ClientSettings) -> list[str]:
    faults = []
    if not chosen.endpoints:
        faults.append(f"{PREFIX}ENDPOINTS is not set: give etcd's addresses, such as etcd:2379")
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
    return faults


def host_name() -> str:
    """Give the name of this host, in Kubernetes the Pod's."""
    return socket.gethostname()


def read_xds_bootstrap() -> str | None:
    """Give the application's own xDS bootstrap, if it has one; gRPC prefers the file (gRFC A27).

    One that an outer process of this library left in the environment is none.
    """
    if path := os.environ.get(_BOOTSTRAP_FILE):
        return Path(path).read_text(encoding="utf-8")
    text = os.environ.get(_BOOTSTRAP_TEXT)
    return None if not text or _is_ours(text) else text


def write_xds_bootstrap(text: str) -> None:
    """Set what gRPC will read. Child processes inherit it; `read_xds_bootstrap` tells them whose it is."""
    os.environ.pop(_BOOTSTRAP_FILE, None)
    os.environ[_BOOTSTRAP_TEXT] = text


def _is_ours(text: str) -> bool:
    try:
        return str(json.loads(text)["node"]["id"]).startswith(_OUR_NODE)
    except (ValueError, KeyError, TypeError):
        return False
