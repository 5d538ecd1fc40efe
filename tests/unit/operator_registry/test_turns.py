"""In which order registries are led that may be one etcd."""

from dataclasses import dataclass
from typing import cast

import pytest

from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.turns import Turns


@dataclass
class Known:
    """What is known of who leads in an etcd, `etcd`: as `last_registry` it was led last."""

    etcd: str
    last_registry: str = ""
    is_listed: bool = True

    def is_apart_from(self, other: "Known", _after_seconds: float) -> bool:
        return self.is_listed and other.is_listed and self.etcd != other.etcd


@dataclass
class Registry:
    name: str
    known: Known
    has_had_turn: bool = False
    is_cut_off: bool = False

    @property
    def election(self) -> Election:
        return cast("Election", self.known)  # which has what turns ask of one


def can_lead(*registries: Registry, aliases: dict[str, str] | None = None) -> list[str]:
    turns = Turns({each.name: each for each in registries}, aliases or {})
    return [each.name for each in registries if turns.is_turn(each.name)]


def test_the_first_of_the_settings_leads_first() -> None:
    one, other = Registry("one", Known("e1")), Registry("other", Known("e2"))
    assert can_lead(one, other) == ["one"]
    one.has_had_turn = True
    assert can_lead(one, other) == ["one", "other"]


@pytest.mark.parametrize("is_away", [False, True])
def test_the_name_by_which_an_etcd_was_led_comes_first(is_away: bool) -> None:  # noqa: FBT001  pytest's
    """Wherever it stands in the settings, and whether or not its endpoints can be reached."""
    before, main, after = (Registry(name, Known("e1", "main")) for name in ("before", "main", "after"))
    main.is_cut_off = main.has_had_turn = is_away
    assert can_lead(before, main, after) == ["main"]
    main.known.is_listed = False
    assert can_lead(before, main, after) == ["main"]


def test_an_etcd_that_is_cut_off_may_have_become_another_since() -> None:
    one, other = Registry("one", Known("e1", "other")), Registry("other", Known("e2"), is_cut_off=True)
    assert "one" not in can_lead(one, other)
    other.is_cut_off = False
    assert "one" in can_lead(one, other)


def test_registries_that_exchanged_their_names_wait_for_nobody() -> None:
    one, other = Registry("one", Known("e1", "other"), has_had_turn=True), Registry("other", Known("e2", "one"))
    assert can_lead(one, other) == ["one", "other"]


def test_a_registry_that_waits_for_another_holds_up_no_third() -> None:
    waiting, apart = Registry("waiting", Known("e1", "away")), Registry("apart", Known("e2", "apart"))
    away = Registry("away", Known("e1", is_listed=False), is_cut_off=True, has_had_turn=True)
    assert can_lead(waiting, apart, away) == ["apart"]
    apart.has_had_turn = True
    assert can_lead(waiting, apart, away) == ["apart", "away"]


def test_a_name_that_is_in_the_settings_no_more_is_waited_for_by_nobody() -> None:
    assert can_lead(Registry("new", Known("e1", "old"))) == ["new"]


def test_an_alias_stands_for_the_registry_of_its_endpoints() -> None:
    """The old name is still there, as the second name of what its endpoints are called now."""
    third, new = Registry("third", Known("e1", "old")), Registry("new", Known("e1", "old"))
    assert can_lead(third, new, aliases={"new": "new", "old": "new", "third": "third"}) == ["new"]
