"""Lines about single services: many at once, few in the long run, and none is missing without a word."""

import logging

import pytest

from grpc_etcd.discovery.log_limit import BURST, LogLimit


def test_lines_about_services_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    limit = LogLimit(logging.getLogger("grpc_etcd"), lambda: now)
    for number in range(2 * BURST):
        limit.write(logging.WARNING, "%s: gone", number, event="service_degraded")
    assert [each.getMessage() for each in caplog.records] == [f"{number}: gone" for number in range(BURST)]
    now = 1.0
    limit.write(logging.WARNING, "%s: gone", "late", event="service_degraded")
    assert caplog.records[-1].getMessage() == f"late: gone ({BURST} lines like this were left out)"
    limit.write(logging.WARNING, "%s: gone", "later", event="service_degraded")
    assert caplog.records[-1].getMessage().startswith("late:")
