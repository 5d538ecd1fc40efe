"""Each row of the table that says which wishes deregister keys and which keep what stands."""

import pytest

from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.wishes import judge_wish

ALL = frozenset({"default", "second"})
NONE = frozenset[str]()


@pytest.mark.parametrize(
    ("reason", "is_partial", "may_keep", "named", "is_obeyed", "is_whole", "kept_in"),
    [
        (Reason.ACCEPTED, False, True, ["default"], True, True, NONE),
        (Reason.UNKNOWN_REGISTRY, True, True, ["default", "typo"], True, False, frozenset({"second"})),
        (Reason.UNKNOWN_REGISTRY, True, True, ["typo"], True, False, ALL),
        (Reason.UNKNOWN_REGISTRY, True, False, ["typo"], True, False, NONE),
        (Reason.PENDING, False, True, ["default"], False, False, ALL),
        (Reason.INVALID_SPEC, False, True, [], False, False, ALL),
        (Reason.PREFIX_NOT_ALLOWED, False, True, ["default"], False, False, ALL),
        (Reason.NAME_RESERVED, False, True, ["default"], False, False, ALL),
        (Reason.NAME_TAKEN, False, True, ["default"], False, False, ALL),
        (Reason.NAME_TAKEN, False, False, ["default"], False, False, NONE),
        (Reason.INVALID_SPEC, False, False, [], False, False, NONE),
    ],
)
def test_only_a_clear_wish_deregisters(
    reason: Reason,
    *,
    is_partial: bool,
    may_keep: bool,
    named: list[str],
    is_obeyed: bool,
    is_whole: bool,
    kept_in: frozenset[str],
) -> None:
    wish = judge_wish(reason, is_partial=is_partial, may_keep=may_keep, registries=ALL, named=named)
    assert (wish.is_obeyed, wish.is_whole, wish.kept_in) == (is_obeyed, is_whole, kept_in)
