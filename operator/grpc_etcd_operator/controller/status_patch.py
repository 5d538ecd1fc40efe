"""Writes statuses of GrpcServices that somebody else may be changing at the same time."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from grpc_etcd_operator.core.services import GrpcService, parse_service
from grpc_etcd_operator.kube.client import PLURAL, ApiError, Client

CONFLICTS = 4  # so often a status is tried again at once where somebody else was faster. Arbitrary


async def patch_status(
    client: Client,
    service: GrpcService,
    status: Mapping[str, Any],
    still_holds: Callable[[GrpcService], bool] = lambda _found: True,
) -> Mapping[str, Any]:
    """Write a status to the object that it speaks of, also where others change it faster than a watch reports.

    `still_holds` says of the object as it is now whether the status may be written to it. Raises the conflict (409)
    where it may not, where the object is another by now, and where somebody else is faster each time.
    """
    where, version = (service.namespace, service.name, service.uid), service.resource_version
    for _ in range(CONFLICTS):
        try:
            return await client.patch_service_status(*where, status, version)
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            raw = await client.read(PLURAL, service.namespace, service.name)
            found = None if raw is None else parse_service(raw)
            if found is None or found.uid != service.uid or not still_holds(found):
                raise
            version = found.resource_version
    return await client.patch_service_status(*where, status, version)
