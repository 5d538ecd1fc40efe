"""One cause that concerns many objects fills no log."""

import logging
from collections.abc import Callable

import pytest

from grpc_etcd_operator.isolation import Sparing
from testbed.conditions import wait_until

log = logging.getLogger("test")


def seen(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [record.__dict__["fields"] for record in caplog.records if record.levelno >= logging.WARNING]


def writer(sparing: Sparing) -> Callable[[str, str], None]:
    return lambda kind, of: sparing.write(kind, "refused", "claim_refused", {"of": of})


def test_the_first_of_each_kind_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    write = writer(Sparing(log))
    for number in range(50):
        write("shop", f"shop/{number}")
        write("till", f"till/{number}")
    assert seen(caplog) == [{"of": "shop/0"}, {"of": "till/0"}]


def test_after_a_while_one_more_says_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    write = writer(Sparing(log, every_seconds=0.3))

    def is_said_again() -> bool:
        write("shop", "shop/a")
        return len(seen(caplog)) > 1

    wait_until(is_said_again, "it is said again")
    left_out = seen(caplog)[1]["similar_lines_omitted"]
    assert isinstance(left_out, int)
    assert left_out > 0
