"""Find the API server and the identity as kubectl does: kubeconfig files, or the service account of the Pod.

What may be in a user: a token or its file, a client certificate, name and password, or a program that prints one of
these (exec). Whatever is wrong is an AccessError, whose text says what.
"""

import base64
import json
import re
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from grpc_etcd.inspect.kubernetes import Access
from grpc_etcd.settings import in_cluster_server, named_kubeconfigs

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SCHEMES = ("https://", "http://")
HEADER = re.compile(r"[\x20-\x7e]*")  # what may be in one
EXEC_SECONDS = 60.0  # a program may open a browser, in which somebody logs in
Entry = dict[str, Any]


class AccessError(Exception):
    """A kubeconfig is there and cannot be used."""


def find_access(context: str | None) -> Access | None:
    """Return how the API server is reached; None where neither a kubeconfig nor a service account is there."""
    named = [path for path in named_kubeconfigs() if path.is_file()]
    if not context and not named and (server := in_cluster_server()) and (SERVICE_ACCOUNT / "token").is_file():
        return _in_cluster(server)
    usual = Path("~/.kube/config").expanduser()
    files = named or ([] if named_kubeconfigs() or not usual.is_file() else [usual])
    if not files:
        if context:
            raise AccessError(f"there is no kubeconfig for the context {context}: set KUBECONFIG")
        return None
    try:
        return _from_kubeconfig(_merge(files), context)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        names = ", ".join(map(str, files))
        raise AccessError(f"{names} cannot be used: {type(error).__name__}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    """Return what is wrong with a kubeconfig, without any of its text, which may be a secret."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f"line {mark.line + 1} is not YAML" if mark else str(error)


def _in_cluster(server: str) -> Access:
    token = (SERVICE_ACCOUNT / "token").read_text(encoding="utf-8").strip()
    context = _make_context(str(SERVICE_ACCOUNT / "ca.crt"))
    namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    return Access(server, context, {"Authorization": f"Bearer {token}"}, namespace or "default", is_in_cluster=True)


def _merge(files: list[Path]) -> dict[str, Any]:
    """Read files as kubectl does: the first that has an entry of a name, or a current context, wins."""
    merged: dict[str, Any] = {"clusters": {}, "users": {}, "contexts": {}, "current": ""}
    for path in files:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for kind in ("clusters", "users", "contexts"):
            for entry in document.get(kind) or ():
                merged[kind].setdefault(entry["name"], {"folder": path.parent, **(entry.get(kind[:-1]) or {})})
        merged["current"] = merged["current"] or document.get("current-context") or ""
    return merged


def _from_kubeconfig(config: dict[str, Any], wanted: str | None) -> Access | None:
    name = wanted or config["current"]
    if not wanted and name not in config["contexts"]:
        return None  # as after `kubectl config unset current-context`: no cluster is meant
    if name not in config["contexts"]:
        known = ", ".join(config["contexts"]) or "none"
        raise AccessError(f"there is no context {name} in the kubeconfig; there are {known}")
    chosen = config["contexts"][name]
    cluster, user = config["clusters"][chosen["cluster"]], config["users"].get(chosen.get("user"), {})
    credentials = user | _run_plugin(user.get("exec"))
    context = _make_context(
        _path(cluster, "certificate-authority"),
        _data(cluster, "certificate-authority"),
        is_verified=not cluster.get("insecure-skip-tls-verify"),
        server_name=cluster.get("tls-server-name") or "",
    )
    _load_certificate(context, credentials)
    server, proxy = str(cluster["server"]).rstrip("/"), str(cluster.get("proxy-url") or "")
    if not server.startswith(SCHEMES):
        raise AccessError(f"the server {server!r} of the kubeconfig does not begin with https://")
    return Access(server, context, _headers(credentials), chosen.get("namespace") or "default", proxy)


def _make_context(ca: str = "", data: str = "", *, is_verified: bool = True, server_name: str = "") -> ssl.SSLContext:
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    if ca or data:
        context.load_verify_locations(cafile=ca or None, cadata=data or None)
    else:
        context.load_default_certs()
    # On since Python 3.13: it refuses the CAs of many clusters, which lack extensions that kubectl does not ask for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not is_verified:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class _NamedContext(ssl.SSLContext):
    """Expects the certificate to be of another name than that of the URL, where one is given."""

    server_name = ""

    def wrap_socket(self, *arguments: Any, **more: Any) -> ssl.SSLSocket:
        """Open TLS on a connection."""
        if self.server_name:
            more["server_hostname"] = self.server_name
        return super().wrap_socket(*arguments, **more)


def _load_certificate(context: ssl.SSLContext, user: Mapping[str, Any]) -> None:
    """Load the client certificate; one that is in the kubeconfig itself goes through files that are deleted at once."""
    cert, key = _path(user, "client-certificate"), _path(user, "client-key")
    texts = {name: _data(user, name) for name in ("client-certificate", "client-key")}
    with _no_signals(), tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            if text:
                (Path(folder) / name).write_text(text, encoding="ascii")
        cert = str(Path(folder) / "client-certificate") if texts["client-certificate"] else cert
        key = str(Path(folder) / "client-key") if texts["client-key"] else key
        if cert:
            context.load_cert_chain(cert, key or None)


@contextmanager
def _no_signals() -> Iterator[None]:
    """Let no signal end this process before a private key is deleted that it has written; those that come wait."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _path(entry: Mapping[str, Any], name: str) -> str:
    """Return a file of an entry; kubeconfigs name them from their own folder on."""
    return str(entry["folder"] / entry[name]) if entry.get(name) else ""


def _data(entry: Mapping[str, Any], name: str) -> str:
    return base64.b64decode(entry.get(f"{name}-data") or "").decode("ascii")


def _headers(user: Mapping[str, Any]) -> dict[str, str]:
    token = str(user.get("token") or "")
    if not token and (path := _path(user, "tokenFile")):
        token = Path(path).read_text(encoding="utf-8")
    if token := token.strip():
        if not HEADER.fullmatch(token):
            raise AccessError("the token has a line break, or another character that no token may have")
        return {"Authorization": f"Bearer {token}"}
    if user.get("username"):
        pair = f"{user['username']}:{user.get('password') or ''}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}


def _run_plugin(plugin: Mapping[str, Any] | None) -> dict[str, Any]:
    """Run the program that prints credentials, as kubectl does; nothing where the user has none."""
    if not plugin:
        return {}
    request = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    pairs = [f"{each['name']}={each['value']}" for each in plugin.get("env") or ()]
    program = [plugin["command"], *(plugin.get("args") or ())]
    who = f"{plugin['command']}, which the kubeconfig names,"
    try:
        ended = subprocess.run(  # noqa: S603  the program is the kubeconfig's, which is its user's own
            ["env", f"KUBERNETES_EXEC_INFO={json.dumps(request)}", *pairs, *program],  # noqa: S607  as kubectl does
            stdin=subprocess.DEVNULL,  # what is there may be the manifests
            capture_output=True,
            check=True,
            timeout=EXEC_SECONDS,
        )
    except subprocess.TimeoutExpired as error:  # its own text has the arguments, of which one may be a secret
        raise AccessError(f"{who} did not finish within {EXEC_SECONDS:g} s") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise AccessError(f"{who} has failed: {said or f'exit code {error.returncode}'}") from error
    try:
        return _read_credentials(json.loads(ended.stdout)["status"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AccessError(f"{who} printed no ExecCredential with a status") from error


def _read_credentials(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a program has printed as a kubeconfig would have it."""
    names = {"clientCertificateData": "client-certificate-data", "clientKeyData": "client-key-data"}
    found = {names[name]: base64.b64encode(text.encode()).decode() for name, text in status.items() if name in names}
    return found | ({"token": status["token"]} if status.get("token") else {})
