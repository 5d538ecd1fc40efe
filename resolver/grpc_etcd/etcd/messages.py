"""Message classes, made at run time from the compiled etcd.proto in a private descriptor pool.

protobuf's default pool is one per process and refuses two files of one name, so an application with an `auth.proto` of
its own could not import an etcd client built the usual way. Generated modules would also tie every application to the
protobuf release that generated them. Nothing is built before the first call.
"""

import base64
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory

from grpc_etcd.etcd.descriptor import ENCODED

PACKAGE = "grpc_etcd.wire"


@cache
def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(base64.b64decode(ENCODED))
    return pool


@cache
def message(name: str) -> Any:
    """Return the message class of that name in etcd.proto."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
