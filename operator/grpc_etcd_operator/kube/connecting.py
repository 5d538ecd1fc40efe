"""Where the API server is and how to get in: read by the `kubernetes` package, used by aiohttp sessions.

The official client reads kubeconfig files and service accounts with all their plug-ins, and renews tokens; its
generated API is synchronous and builds an object for each field, so requests go through aiohttp (docs/decisions).
Everything is followed without a restart: the token and the files of certificates are read again after a while, and at
once when they were refused. New connections then use them; those that are open go on.

Each request has a limit for the head of its answer, also a watch, whose body has none; pacing.py says who waits.
"""

import asyncio
import hashlib
import logging
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse, Fingerprint
from kubernetes import config as kube_config
from kubernetes.client import Configuration

from grpc_etcd_operator.kube.pacing import Refusals, hold_seconds
from grpc_etcd_operator.kube.paging import Paging

log = logging.getLogger(__name__)
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
USER_AGENT = f"grpc-etcd-operator/{version('grpc-etcd')}"  # what is before the slash is the field manager, too
KNOWN_SECONDS = 10.0  # the package reads its settings again each time it is asked, which takes longer than a request
HEAD_SECONDS = 10.0  # until the head of an answer is there; a list's is sent after all of a page has been read
# A connection whose other end is gone without a word is noticed after 25 s: idle, then three questions.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
_Files = tuple[tuple[str, int, int, int], ...]


class NoClusterError(Exception):
    """Neither a service account nor a kubeconfig says where the API server is."""


class IdentityRefusedError(aiohttp.ClientConnectionError):
    """The API server has just refused the identity (401): nothing is sent until it is time to try again."""


class Connection:
    """The API server's address and the caller's identity. Reading them may fail with NoClusterError."""

    def __init__(self) -> None:
        self._configuration = _load()
        self._server = str(self._configuration.host).rstrip("/")
        self._files = _look_at_files(self._configuration)
        self._context = _make_context(self._configuration)
        self._header: str | None = None
        self._read_again_at = 0.0
        self._must_load = False
        self._refusals = Refusals()
        self._laters: dict[str, _Later] = {}

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return self._server

    def session(
        self, *traces: aiohttp.TraceConfig, purpose: str = "", middlewares: Sequence[ClientMiddlewareType] = ()
    ) -> aiohttp.ClientSession:
        """Open a session that carries this identity; whoever asks for it closes it.

        Those of one purpose (if it has a name) keep the same Retry-After, also when one follows another. Middlewares
        see each request first.
        """
        later = self._laters.setdefault(purpose, _Later()) if purpose else _Later()
        return aiohttp.ClientSession(
            connector=self._make_connector(),
            request_class=self._request_class(),
            middlewares=[*middlewares, later.wait, Paging(), self._authorize],
            trace_configs=list(traces) or None,
            headers={"User-Agent": USER_AGENT},
            trust_env=False,
        )

    def _make_connector(self) -> aiohttp.BaseConnector:
        return aiohttp.TCPConnector(limit=0, socket_factory=_open_socket)

    def authorities(self) -> frozenset[str]:
        """Return the SHA-256 of each certificate that the API server's is checked against; none where none is named."""
        try:
            text = Path(self._configuration.ssl_ca_cert or "").read_text(encoding="ascii", errors="replace")
        except OSError:
            return frozenset()
        found = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL)
        return frozenset(hashlib.sha256("".join(each.split()).encode()).hexdigest() for each in found)

    def _request_class(self) -> type[ClientRequest]:
        """Make requests whose connection, if they need a new one, is checked by the certificates of the moment."""
        connection = self

        class Request(ClientRequest):
            @property
            def ssl(self) -> ssl.SSLContext | bool | Fingerprint:
                return connection._context

        return Request

    async def _authorize(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        if not self._refusals.may_ask(time.monotonic()):
            raise IdentityRefusedError("The API server rejected the credentials (401), retrying")
        self._follow()
        if self._header:
            request.headers["Authorization"] = self._header
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                response = await handler(request)
        except aiohttp.ClientSSLError:
            self._read_again_at = 0.0
            raise
        is_refused = response.status == HTTPStatus.UNAUTHORIZED
        self._refusals.note(time.monotonic(), random.random(), refused=is_refused)  # noqa: S311  no secret
        if is_refused:
            self._read_again_at, self._must_load = 0.0, True
        return response

    def _follow(self) -> None:
        """Read again what may have changed: the token always, the rest if a file of it has changed."""
        if time.monotonic() < self._read_again_at:
            return
        self._read_again_at = time.monotonic() + KNOWN_SECONDS
        try:
            if self._must_load or _look_at_files(self._configuration) != self._files:
                self._load_again()
            self._header = _read_header(self._configuration)
        except Exception as error:  # noqa: BLE001  plug-ins and files may be at fault in any way, for a moment or longer
            self._read_again_at = time.monotonic() + 1.0
            message = "Credential files cannot be read, using the previous credentials"
            log.warning(
                message, extra={"event": "identity_unreadable", "fields": {"error": f"{type(error).__name__}: {error}"}}
            )

    def _load_again(self) -> None:
        configuration = _load()
        files = _look_at_files(configuration)
        if files != self._files:  # else the pool of connections would lose what it has
            self._context = _make_context(configuration)
            log.info("Credential files changed, new connections use them", extra={"event": "identity_reloaded"})
        self._configuration, self._files, self._must_load = configuration, files, False


class _Later:
    """Holds a session back for as long as the API server asked for."""

    def __init__(self) -> None:
        self._until = 0.0

    async def wait(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send a request when it is time."""
        while (seconds := self._until - time.monotonic()) > 0:  # noqa: ASYNC110  it may have become later
            await asyncio.sleep(seconds)
        response = await handler(request)
        if seconds := hold_seconds(response.status, response.headers):
            self._until = time.monotonic() + seconds
        return response


def _read_header(configuration: Any) -> str | None:
    header = configuration.get_api_key_with_prefix("BearerToken") or configuration.get_api_key_with_prefix(
        "authorization"
    )
    if header:
        return header if " " in header else f"Bearer {header}"
    if configuration.username and configuration.password:
        return str(configuration.get_basic_auth_token())
    return None


def _make_context(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    # On since Python 3.13: it refuses the CAs of many clusters, which lack extensions that kubectl does not ask for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def _look_at_files(configuration: Any) -> _Files:
    """Report the files that the identity is read from, in the state that they are in."""
    paths = [configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file]
    if not SERVICE_ACCOUNT_TOKEN.exists():
        paths += [Path(each).expanduser() for each in kube_config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)]
    states = [(str(path), Path(path).stat()) for path in paths if path and Path(path).exists()]
    return tuple((path, state.st_mtime_ns, state.st_size, state.st_ino) for path, state in states)


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Open a socket that notices when the other end is gone."""
    family, kind, protocol, _, _ = address
    opened = socket.socket(family=family, type=kind, proto=protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not every system has all of them
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return opened


def _load() -> Any:
    configuration = Configuration()
    try:
        if SERVICE_ACCOUNT_TOKEN.exists():
            kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # no types
        else:
            kube_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # no types
    except kube_config.ConfigException as error:
        raise NoClusterError(
            f"no API server is known ({error}): set KUBECONFIG to a file, or run in a Pod with a service account"
        ) from error
    return configuration
