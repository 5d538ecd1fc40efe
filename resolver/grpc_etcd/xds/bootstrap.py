"""The xDS bootstrap: where gRPC learns which management server to ask. Pure: texts in, texts out.

gRPC reads one bootstrap per process. An application may have its own, so ours is never written over it: we add an
authority, and `xds://etcd/...` goes to us while every other `xds:` target goes where it went before.
"""

import json
from typing import Any

from grpc_etcd.xds.names import AUTHORITY


class BootstrapError(ValueError):
    """The application's own bootstrap is not a JSON object, so nothing can be added to it."""


def merge_bootstrap(existing: str | None, server_uri: str, node_id: str) -> str:
    """Add our authority to the application's bootstrap, or make one of our own."""
    ours = _server(server_uri)
    merged: dict[str, Any] = _parse(existing) if existing else {"xds_servers": [ours]}
    merged.setdefault("node", {"id": node_id})
    merged["authorities"] = {**merged.get("authorities", {}), AUTHORITY: {"xds_servers": [ours]}}
    return json.dumps(merged)


def _server(uri: str) -> dict[str, Any]:
    return {"server_uri": uri, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}


def _parse(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise BootstrapError(f"the application's xDS bootstrap is not JSON: {error}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("authorities", {}), dict):
        raise BootstrapError("the application's xDS bootstrap is not a JSON object with an object of authorities")
    return parsed
