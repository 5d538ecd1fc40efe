"""Where the API server is and how to get in: read by the `kubernetes` package, used by aiohttp sessions.

The official client reads kubeconfig files and service accounts with all their plug-ins, and renews tokens; its
generated API is synchronous and builds an object for each field, so requests go through aiohttp (docs/decisions).
The token is asked for anew after a while, and at once when it was refused: a new one is used without a restart.
"""

import ssl
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from kubernetes import config as kube_config
from kubernetes.client import Configuration

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
KNOWN_SECONDS = 10.0  # the package reads its settings anew each time it is asked, which takes longer than a request


class NoClusterError(Exception):
    """Neither a service account nor a kubeconfig says where the API server is."""


class Connection:
    """The API server's address and the caller's identity. Reading them may fail with NoClusterError."""

    def __init__(self) -> None:
        self._configuration = _load()
        self._header: str | None = None
        self._read_again_at = 0.0

    @property
    def server(self) -> str:
        """Give the API server's URL."""
        return str(self._configuration.host).rstrip("/")

    def session(self, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """Open a session that carries this identity; whoever asks for it closes it."""
        connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl_context())
        return aiohttp.ClientSession(
            connector=connector, middlewares=[self._authorize], trace_configs=list(traces) or None, trust_env=False
        )

    async def _authorize(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        if time.monotonic() >= self._read_again_at:
            self._header = self._read_header()
            self._read_again_at = time.monotonic() + KNOWN_SECONDS
        if self._header:
            request.headers["Authorization"] = self._header
        response = await handler(request)
        if response.status == HTTPStatus.UNAUTHORIZED:
            self._read_again_at = 0.0
        return response

    def _read_header(self) -> str | None:
        configuration = self._configuration
        header = configuration.get_api_key_with_prefix("BearerToken") or configuration.get_api_key_with_prefix(
            "authorization"
        )
        if header:
            return header if " " in header else f"Bearer {header}"
        if configuration.username and configuration.password:
            return str(configuration.get_basic_auth_token())
        return None

    def _ssl_context(self) -> ssl.SSLContext:
        configuration = self._configuration
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
        return context


def _load() -> Any:
    configuration = Configuration()
    try:
        if SERVICE_ACCOUNT_TOKEN.exists():
            kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            kube_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except kube_config.ConfigException as error:
        raise NoClusterError(
            f"no API server is known ({error}): set KUBECONFIG to a file, or run in a Pod with a service account"
        ) from error
    return configuration
