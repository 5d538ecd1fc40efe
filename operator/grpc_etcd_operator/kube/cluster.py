"""Finds out which cluster this is, and waits for its API server and for our CRD until it is known."""

import asyncio
import logging
from http import HTTPStatus

import aiohttp

from grpc_etcd_operator.core.scope import Fingerprint
from grpc_etcd_operator.kube.client import VERSION, ApiError, Client
from grpc_etcd_operator.kube.connecting import Connection, NoClusterError
from grpc_etcd_operator.settings import Settings, UnusableError

log = logging.getLogger(__name__)
RETRY_SECONDS = 2.0


async def find_cluster(settings: Settings, client: Client) -> tuple[str, str]:
    """Return the cluster id, and kube-system's UID where it may be read; wait for the API server, and for our CRD."""
    while True:
        try:
            state = await client.crd_state()
            if state.other_versions and VERSION not in state.other_versions:
                versions = ", ".join(state.other_versions)
                raise UnusableError(
                    f"the CRD grpcservices.grpc-etcd.dev is installed in version {versions}, this operator needs "
                    f"{VERSION}: install the CRD of this release (crds/grpcservices.yaml)"
                )
            uid = await _find_uid(settings, client)
        except ApiError as error:
            if error.status == HTTPStatus.FORBIDDEN and not settings.cluster_id:
                raise UnusableError(
                    f"--cluster-id is not set and the namespace kube-system cannot be read ({error}): set "
                    "--cluster-id to a name of this cluster, or allow `get` on that namespace"
                ) from error
            log_unreachable(client, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            log_unreachable(client, error)
        else:
            return settings.cluster_id or uid, uid
        await asyncio.sleep(RETRY_SECONDS)


async def _find_uid(settings: Settings, client: Client) -> str:
    try:
        return await client.cluster_uid()
    except ApiError as error:
        if error.status == HTTPStatus.FORBIDDEN and settings.cluster_id:
            return ""  # the CA distinguishes clusters as well, if less surely
        raise


def log_unreachable(client: Client, error: Exception) -> None:
    """Log that the API server cannot be reached."""
    log.error(
        "API server at %s unreachable, retrying: check KUBECONFIG and the network",
        client.server,
        extra={"event": "api_server_unreachable", "fields": {"error": f"{type(error).__name__}: {error}"}},
    )


async def find_identity(settings: Settings) -> tuple[str, Fingerprint]:
    """Return the cluster id, and what is known of the Kubernetes cluster that we are in.

    Unlike `find_cluster` it waits for nothing: with a cluster id in the settings no Kubernetes is needed, else
    UnusableError says so.
    """
    fingerprint = await _find_fingerprint()
    cluster = settings.cluster_id or fingerprint.kube_system
    if not cluster:
        raise UnusableError("--cluster-id is not set and the namespace kube-system cannot be read: set --cluster-id")
    return cluster, fingerprint


async def _find_fingerprint() -> Fingerprint:
    try:
        connection = Connection()
    except NoClusterError:
        return Fingerprint()
    client = Client(connection.server, connection.session())
    try:
        uid = await client.cluster_uid()
    except (ApiError, aiohttp.ClientError, TimeoutError):
        uid = ""
    finally:
        await client.close()
    return Fingerprint(uid, connection.authorities())
