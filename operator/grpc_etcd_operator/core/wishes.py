"""Which wishes deregister keys, and which keep what exists: one table, which docs/architecture.md repeats. Pure.

    what the spec is                            | keys wanted by           | keys that stand otherwise
    --------------------------------------------+--------------------------+-------------------------------
    obeyed (accepted)                           | the spec                 | deleted: its owner's clear wish
    obeyed except for registries that are unknown  | the spec, where it is    | stay
    asking (its claims are not granted yet)     | the last that was obeyed | stay
    InvalidSpec, PrefixNotAllowed, NameTaken    | the last that was obeyed | stay
    its Service is missing, unusable, unknown   | the last that was obeyed | stay
    any of these, its claims lost to another    | nobody                   | deleted: they are below another's claim

After a restart the last spec that was obeyed is unknown; then all keys stay that the owner records name for the
GrpcService. Keys of Pods that are not ready, and of objects that are gone, are deleted in every row. A spec in force,
else a valid one, says by its `publishNotReady` whether a Pod counts as ready for that.
"""

from collections.abc import Collection
from dataclasses import dataclass

from grpc_etcd_operator.core.reasons import OBEYED, Reason


@dataclass(frozen=True, slots=True)
class Wish:
    """What counts of a spec: it is obeyed where its registries are known, wholly obeyed, or what exists is kept."""

    is_obeyed: bool
    is_whole: bool
    kept_in: frozenset[str]


def judge_wish(
    reason: Reason, *, is_partial: bool, may_keep: bool, registries: Collection[str], named: Collection[str]
) -> Wish:
    """Decide by the reason of a verdict. `named` are the spec's registries, `registries` those that there are.

    `is_partial`: some of those named are unknown. `may_keep`: no claim was lost to another.
    """
    if reason not in OBEYED:
        return Wish(is_obeyed=False, is_whole=False, kept_in=frozenset(registries) if may_keep else frozenset())
    kept = frozenset(registries) - frozenset(named) if is_partial and may_keep else frozenset[str]()
    return Wish(is_obeyed=True, is_whole=not is_partial, kept_in=kept)
