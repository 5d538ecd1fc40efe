"""Keywords that a function does not have: refused with the one that may have been meant. Pure."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ClassT = TypeVar("ClassT", bound=type)

# What is called otherwise in the environment, and the other way round.
_OTHER_NAMES = {"endpoints": "etcd", "endpoint": "etcd", "etcd": "endpoints", "etcd_timeout_seconds": "timeout"}


def unknown_option(where: str, given: Iterable[str], known: Iterable[str]) -> str | None:
    """Return which keyword is unknown, and which one may have been meant; None while all are known."""
    known = tuple(known)
    for name in given:
        if name not in known:
            near = [each for each in (_OTHER_NAMES.get(name),) if each in known]
            near = near or [each for each in known if name in each.split("_")]
            near = near or [each for each in known if name.startswith(each)]
            near = near or difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{where} has no option {name!r}{hint} (it has {', '.join(known)})"
    return None


def suggesting(where: str, hints: Mapping[str, str] | None = None) -> Callable[[FunctionT], FunctionT]:
    """Let a function that is given an unknown keyword say which one may have been meant, or the hint for that one."""

    def decorate(function: FunctionT) -> FunctionT:
        known = keywords(inspect.signature(function).parameters.values())

        def check(given: Mapping[str, Any]) -> None:
            if unknown := [name for name in given if name not in known]:
                hint = (hints or {}).get(unknown[0])
                said = (
                    f"{where} has no option {unknown[0]!r}: {hint}" if hint else unknown_option(where, unknown, known)
                )
                raise TypeError(said)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check(kwargs)
            return function(*args, **kwargs)

        @functools.wraps(function)
        async def checked_async(*args: Any, **kwargs: Any) -> Any:
            check(kwargs)
            return await function(*args, **kwargs)

        if inspect.iscoroutinefunction(function):
            return checked_async  # type: ignore[return-value]  # it is called as the function is
        return checked  # type: ignore[return-value]  # it is called as the function is

    return decorate


def suggesting_fields(of: ClassT) -> ClassT:
    """Let a dataclass do the same."""
    made: Any = of
    made.__init__ = suggesting(of.__name__)(made.__init__)
    return of


def keywords(parameters: Iterable[inspect.Parameter]) -> dict[str, None]:
    """Return the names by which arguments may be given, in order."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {each.name: None for each in parameters if each.kind in kinds and each.name not in {"self", "cls"}}
