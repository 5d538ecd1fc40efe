"""`plan` waits as long as something comes, and for no part of it for ever."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.controller.dry_run import Standstill

LIMIT = 60.0
parts = st.dictionaries(st.sampled_from(["pods", "registry a", "registry b"]), st.integers(0, 2))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_part_that_stands_still_is_not_hidden_by_another_that_moves() -> None:
    clock = Clock()
    waiting = Standstill(LIMIT, clock)
    for second in range(61):
        clock.now = float(second)
        assert not waiting.lasts({"registry a": "unread", "registry b": second})
    clock.now = 61.0
    assert waiting.lasts({"registry a": "unread", "registry b": 61})


@given(st.lists(st.tuples(parts, st.floats(0, 50)), max_size=20))
def test_it_lasts_when_a_part_has_been_missing_unchanged_for_longer(steps: list[tuple[dict[str, int], float]]) -> None:
    clock = Clock()
    waiting, since = Standstill(LIMIT, clock), dict[tuple[str, int], float]()
    for missing, pause in steps:
        clock.now += pause
        since = {item: since.get(item, clock.now) for item in missing.items()}
        assert waiting.lasts(missing) == any(clock.now - at > LIMIT for at in since.values())
