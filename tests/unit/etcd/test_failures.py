"""How long is waited after failures of several kinds: one kind must not make another one wait."""

import pytest

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.following import Ask, Failures, Following, LogIn, Tell, Wait


@pytest.mark.parametrize("error", [errors.TokenRefused(""), errors.Compacted(""), errors.HistoryChanged("")])
def test_what_is_mended_at_once_is_tried_at_once_however_long_etcd_was_away(error: errors.EtcdError) -> None:
    failures = Failures()
    for _ in range(20):
        failures.pause_seconds(errors.Unavailable(""))
    assert failures.pause_seconds(error) == 0
    assert failures.pause_seconds(error) > 0
    assert failures.pause_seconds(errors.Unavailable("")) == failures.pause_seconds(errors.Unavailable(""))


def test_refusals_in_turn_with_other_failures_are_waited_for_ever_longer() -> None:
    failures = Failures()
    pauses = []
    for _ in range(10):
        pauses.append(failures.pause_seconds(errors.TokenRefused("")))
        failures.pause_seconds(errors.Unavailable(""))
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30
    failures.forget()
    assert not failures
    assert failures.pause_seconds(errors.TokenRefused("")) == 0


def test_a_follower_logs_in_anew_at_once_after_an_outage() -> None:
    commands = Following((b"a/",), clock=lambda: 0.0, jitter=lambda: 1.0).commands()
    command = next(commands)
    for _ in range(20):
        assert isinstance(command, Ask)
        command = commands.throw(errors.Unavailable("away"))
        while not isinstance(command, Ask):
            command = next(commands)
    command = commands.throw(errors.TokenRefused("restarted"))
    assert isinstance(command, LogIn)
    following = [next(commands), next(commands)]
    assert isinstance(following[0], Tell)
    assert following[1] == Wait(0)
