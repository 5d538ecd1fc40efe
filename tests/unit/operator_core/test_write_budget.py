"""The bytes that a namespace may write: however it asks, a bound holds, and who asks for little never waits."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd_operator.core.write_budget import (
    PRUNE_AT,
    REGISTRATIONS,
    REWRITES,
    Bucket,
    WriteBudget,
)
from testbed.examples import examples

HOUR = 3600.0
SMALL = Bucket(1000.0, 10.0)
LARGEST = 3000
steps = st.lists(
    st.tuples(st.floats(0.0, 200.0), st.sampled_from("abc"), st.integers(1, LARGEST), st.booleans()), max_size=60
)


@settings(max_examples=examples(300))
@given(steps=steps)
def test_what_is_written_in_any_time_is_bounded(steps: list[tuple[float, str, int, bool]]) -> None:
    budget, now = WriteBudget(SMALL, SMALL), 0.0
    written: list[tuple[float, int]] = []
    for pause, uid, extra, does_write in steps:
        now += pause
        size = extra
        if budget.reserve(uid, "shop", size, now, is_new=False) <= now and does_write:
            written.append((now, size))
            budget.end(uid)
    largest = LARGEST
    for first, (begin, _) in enumerate(written):
        for last, (end, _) in enumerate(written[first:], first):
            total = sum(size for _, size in written[first : last + 1])
            # Who waits has paid before: three units, each of which also may have been the one that went into debt.
            most = SMALL.burst_bytes + (end - begin) * SMALL.bytes_per_second + 4 * largest
            assert total <= most


@settings(max_examples=examples(300))
@given(
    asks=st.lists(
        st.tuples(st.floats(0.0, 200.0), st.integers(0, 9), st.sampled_from([1, 50, LARGEST, None])), max_size=60
    )
)
def test_what_waits_and_grows_is_bounded_however_many_units_do(asks: list[tuple[float, int, int | None]]) -> None:
    budget, now, may_be_written = WriteBudget(SMALL, SMALL), 0.0, 0
    sizes, given_at, admitted = dict[int, int](), dict[int, float](), Counter[int]()
    for pause, unit, size in asks:
        now += pause
        if size is None:
            budget.give_up(f"p{unit}")
            may_be_written += admitted.pop(unit, 0)
            sizes.pop(unit, None)
            continue
        sizes[unit], given_at[unit] = size, budget.reserve(f"p{unit}", "shop", size, now, is_new=False)
        for uid, before, at in budget.take_earlier(now):
            other = int(uid.removeprefix("p"))
            assert now <= at < before == given_at[other]
            given_at[other] = at
        if given_at[unit] <= now:
            admitted[unit] = max(size, admitted[unit])
        may_go = sum(max(admitted[of], each if given_at[of] <= now else 0) for of, each in sizes.items())
        assert may_be_written + may_go <= SMALL.burst_bytes + now * SMALL.bytes_per_second + LARGEST


def test_thousands_that_asked_for_little_do_not_write_much_at_once() -> None:
    budget, pods, small, large = WriteBudget(), 5000, 1300, 500_000
    for number in range(pods):
        assert budget.reserve(f"p{number}", "shop", small, 0.0, is_new=False) == 0.0
    # Before they are written, in their turns, one field of their GrpcService makes them large.
    at_once = sum(budget.reserve(f"p{number}", "shop", large, 1.0, is_new=False) <= 1.0 for number in range(pods))
    assert at_once * large <= REWRITES.burst_bytes + large


def test_who_waits_with_a_changed_value_and_loses_its_keys_is_registered_again_at_once() -> None:
    budget = WriteBudget(SMALL, SMALL)
    budget.reserve("noisy", "shop", 100_000, 0.0, is_new=False)
    assert budget.reserve("p", "shop", 500, 0.0, is_new=False) > 9000.0
    assert budget.reserve("p", "shop", 500, 1.0, is_new=True) <= 1.0
    budget.end("p")
    assert budget.reserve("p", "shop", 500, 2.0, is_new=False) > 9000.0


def test_who_comes_and_goes_while_it_waits_puts_off_nobody() -> None:
    budget = WriteBudget(SMALL, SMALL)
    assert budget.reserve("last", "shop", 1500, 0.0, is_new=True) == 0.0
    expected = budget.reserve("p", "shop", 500, 0.0, is_new=True)
    assert expected == 50.0
    for _ in range(1000):
        budget.give_up("p")
        assert budget.reserve("p", "shop", 500, 0.0, is_new=True) == expected
    budget.give_up("last")  # that may have been written, though nobody has learned of it
    assert budget.reserve("q", "shop", 500, 0.0, is_new=True) == 100.0


def test_what_others_have_written_is_not_given_back_with_what_waited_for_long() -> None:
    budget, now, written = WriteBudget(SMALL, SMALL), 0.0, 0
    for kind, count in (("ghost", 50), ("waits", 20)):
        for number in range(count):
            budget.reserve(f"{kind}{number}", "shop", 1000, now, is_new=False)
    for number in range(50):
        budget.give_up(f"ghost{number}")
    now = 10_000.0  # the bucket is full again, whatever of it has been waited for
    for number in range(20):
        while budget.reserve("p", "shop", 1000, now, is_new=False) <= now:
            written += 1000
            budget.end("p")
        budget.give_up("p")
        budget.give_up(f"waits{number}")
    assert written <= SMALL.burst_bytes + 1000


def test_who_has_a_place_among_new_ones_does_not_rewrite_by_it() -> None:
    budget = WriteBudget(SMALL, SMALL)
    budget.reserve("noisy", "shop", 100_000, 0.0, is_new=False)
    assert budget.reserve("p", "shop", 500, 0.0, is_new=True) == 0.0
    assert budget.reserve("p", "shop", 500, 1.0, is_new=False) > 9000.0


@settings(max_examples=examples(300))
@given(steps=steps)
def test_who_waits_is_given_a_time_that_comes(steps: list[tuple[float, str, int, bool]]) -> None:
    budget, now = WriteBudget(SMALL, SMALL), 0.0
    given_at, most = dict[str, float](), dict[str, int]()
    for pause, uid, extra, _ in steps:
        now += pause
        at = budget.reserve(uid, "shop", extra, now, is_new=False)
        if extra <= most.setdefault(uid, extra):
            assert given_at.setdefault(uid, at) == at, "to ask again changes nothing"
        assert at >= given_at.get(uid, at), "nor does anybody come earlier by asking for more"
        given_at[uid], most[uid] = at, max(extra, most[uid])
        if at <= now:
            budget.end(uid)
            del given_at[uid], most[uid]
    assert budget.count_waiting(now) == sum(at > now for at in given_at.values())
    assert budget.count_waiting(now + 1e6) == 0


def test_units_take_turns_in_the_order_in_which_they_asked() -> None:
    budget = WriteBudget(SMALL, SMALL)
    assert [budget.reserve(uid, "shop", 1000, 0.0, is_new=False) for uid in ("a", "b", "c", "d")] == [
        0.0,
        0.0,
        100.0,
        200.0,
    ]
    budget.end("a")
    assert budget.reserve("a", "shop", 1000, 1.0, is_new=False) == 300.0


def test_it_is_paid_for_once_however_often_it_is_tried() -> None:
    budget = WriteBudget(SMALL, SMALL)
    assert {budget.reserve("a", "shop", 900, 0.0, is_new=False) for _ in range(10)} == {0.0}
    assert (
        budget.reserve("a", "shop", 1000, 0.0, is_new=False) == 0.0
    )  # a newer value of which 100 bytes are to be paid
    assert budget.reserve("b", "shop", 500, 0.0, is_new=False) == 0.0
    assert budget.reserve("c", "shop", 500, 0.0, is_new=False) == 50.0


def test_other_namespaces_new_registrations_and_deletions_do_not_wait() -> None:
    budget = WriteBudget(SMALL, SMALL)
    for number in range(10):
        budget.reserve(f"p{number}", "noisy", 1000, 0.0, is_new=False)
    assert budget.reserve("late", "noisy", 1000, 0.0, is_new=False) > 0.0
    assert budget.reserve("new", "noisy", 1000, 0.0, is_new=True) == 0.0
    assert budget.reserve("goes", "noisy", 0, 0.0, is_new=False) == 0.0
    assert budget.reserve("other", "quiet", 1000, 0.0, is_new=False) == 0.0


def test_an_honest_namespace_never_waits() -> None:
    """A thousand Pods with ten kilobytes each are replaced eight times an hour, for a day, and change as often."""
    budget, pods, size = WriteBudget(), 1000, 10_000
    for rollout in range(8 * 24):
        now = rollout * HOUR / 8
        for pod in range(pods):
            for is_new in (True, False):
                assert budget.reserve(f"{rollout}-{pod}", "shop", size, now, is_new=is_new) <= now
                budget.end(f"{rollout}-{pod}")


def test_a_large_namespace_is_registered_at_once() -> None:
    budget = WriteBudget()
    size = 1300  # a key with its value, and the owner record
    assert max(budget.reserve(f"p{number}", "shop", size, 0.0, is_new=True) for number in range(100_000)) == 0.0


def test_one_namespace_writes_less_than_half_of_etcds_quota_between_two_compactions() -> None:
    hours = 2  # of history that an hourly compaction leaves at most
    kinds = (REGISTRATIONS, REWRITES)
    most = sum(each.burst_bytes + hours * HOUR * each.bytes_per_second for each in kinds)
    assert most < (2 << 30) / 2


def test_nothing_is_kept_of_namespaces_that_have_not_written_for_long() -> None:
    budget = WriteBudget(SMALL, SMALL)
    for number in range(100 * PRUNE_AT):
        budget.reserve("p", f"namespace-{number}", 500, float(number), is_new=False)
        budget.end("p")
    assert len(budget._full_at) <= 2 * PRUNE_AT  # which shows nowhere else
    assert not budget._reservations
