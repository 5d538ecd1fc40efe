"""Each row of the table that says which wishes withdraw keys and which keep what stands."""

import pytest

from grpc_etcd_operator.core.wishes import judge_wish

ALL = frozenset({"default", "second"})
NONE = frozenset[str]()


@pytest.mark.parametrize(
    ("reason", "is_partial", "may_keep", "named", "is_obeyed", "is_whole", "kept_in"),
    [
        ("Accepted", False, True, ["default"], True, True, NONE),
        ("UnknownRegistry", True, True, ["default", "typo"], True, False, frozenset({"second"})),
        ("UnknownRegistry", True, True, ["typo"], True, False, ALL),
        ("UnknownRegistry", True, False, ["typo"], True, False, NONE),
        ("Pending", False, True, ["default"], False, False, ALL),
        ("InvalidSpec", False, True, [], False, False, ALL),
        ("PrefixNotAllowed", False, True, ["default"], False, False, ALL),
        ("NameReserved", False, True, ["default"], False, False, ALL),
        ("NameTaken", False, True, ["default"], False, False, ALL),
        ("NameTaken", False, False, ["default"], False, False, NONE),
        ("InvalidSpec", False, False, [], False, False, NONE),
    ],
)
def test_only_a_clear_wish_withdraws(
    reason: str,
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
