"""Conditions of a transaction: `compare.mod_revision(key, "==", 7)`.

A key that does not exist compares as version, revisions and lease 0.
"""

from typing import Literal, NamedTuple, TypeAlias

from grpc_etcd.etcd.model import prefix_end

Target: TypeAlias = Literal["version", "create_revision", "mod_revision", "value", "lease"]
Operator: TypeAlias = Literal["==", "!=", ">", "<"]


class Compare(NamedTuple):
    """One condition on one key, or on each one of a range."""

    key: bytes
    target: Target
    operator: Operator
    operand: int | bytes
    range_end: bytes = b""  # with one, the condition is on each key of the range


def version(key: bytes, operator: Operator, operand: int) -> Compare:
    """Compare how often the key was put since it was created (0: it does not exist)."""
    return Compare(key, "version", operator, operand)


def create_revision(key: bytes, operator: Operator, operand: int) -> Compare:
    """Compare the revision that created the key."""
    return Compare(key, "create_revision", operator, operand)


def mod_revision(key: bytes, operator: Operator, operand: int) -> Compare:
    """Compare the revision that last put the key."""
    return Compare(key, "mod_revision", operator, operand)


def value(key: bytes, operator: Operator, operand: bytes) -> Compare:
    """Compare the key's value. A key that does not exist never fits."""
    return Compare(key, "value", operator, operand)


def leases(prefix: bytes, operator: Operator, operand: int) -> Compare:
    """Compare the lease of each key with this prefix; all of them have to fit. Where there is none, 0 is compared."""
    return Compare(prefix, "lease", operator, operand, prefix_end(prefix))


def lease(key: bytes, operator: Operator, operand: int) -> Compare:
    """Compare the key's lease."""
    return Compare(key, "lease", operator, operand)
