"""Operations of a transaction: `ops.put(key, value, lease=id)`."""

from typing import NamedTuple, TypeAlias

from grpc_etcd.etcd.model import prefix_end, range_start


class PutOp(NamedTuple):
    """Put one key."""

    key: bytes
    value: bytes
    lease: int


class DeleteOp(NamedTuple):
    """Delete one key, or a range."""

    key: bytes
    end: bytes


class GetOp(NamedTuple):
    """Read one key, or a range."""

    key: bytes
    end: bytes


Op: TypeAlias = PutOp | DeleteOp | GetOp


def put(key: bytes, value: bytes, lease: int = 0) -> PutOp:
    """Put a key; its response is the revision."""
    return PutOp(key, value, lease)


def delete(key: bytes) -> DeleteOp:
    """Delete a key; its response is how many were there (0 or 1)."""
    return DeleteOp(key, b"")


def delete_prefix(prefix: bytes) -> DeleteOp:
    """Delete all keys of a prefix; its response is how many were there."""
    return DeleteOp(range_start(prefix), prefix_end(prefix))


def get(key: bytes) -> GetOp:
    """Read a key; its response is a Listing of one record or none."""
    return GetOp(key, b"")


def get_prefix(prefix: bytes) -> GetOp:
    """Read a prefix in one reply; its response is a Listing."""
    return GetOp(range_start(prefix), prefix_end(prefix))
