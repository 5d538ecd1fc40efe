"""A mapping that nobody changes, for the fields of values: it can be copied, pickled and written as JSON as a dict can.

`types.MappingProxyType` can do none of that, so neither could `dataclasses.asdict(endpoint)`.
"""

from typing import Any, NoReturn, TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class FrozenDict(dict[KeyT, ValueT]):
    """A dict that is never changed."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this mapping is immutable; copy it to a dict")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type["FrozenDict[KeyT, ValueT]"], tuple[dict[KeyT, ValueT]]]:
        return type(self), (dict(self),)
