"""What others wrote reaches the log as escapes, whoever handles it."""

import ast
import json
import logging
from pathlib import Path

import pytest

import grpc_etcd
from grpc_etcd_operator.controller.dry_run import describe
from grpc_etcd_operator.core.plan import Plan, PutEdit
from grpc_etcd_operator.telemetry.logs import JsonFormatter

TITLE = "\x1b]0;owned\x07"
LIBRARY = Path(grpc_etcd.__file__).parent


def test_arguments_and_exceptions_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("grpc_etcd")
    log.warning("%s: %s after %.1f s, %r", f"name{TITLE}", ValueError(f"a\n{TITLE}"), 1.5, b"\x1b")
    try:
        raise ValueError(TITLE)  # noqa: TRY301  its text is to be escaped where the traceback is printed
    except ValueError:
        log.exception("unexpected")
    assert r"name\x1b]0;owned\x07: a\n\x1b]0;owned\x07 after 1.5 s, b'\x1b'" in caplog.messages
    assert all(line.isprintable() for line in caplog.text.split("\n"))


def test_every_module_logs_to_the_logger_that_escapes() -> None:
    names = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
                names.add(ast.unparse(node.args[0]) if node.args else "")
    assert names <= {"'grpc_etcd'", "LOGGER"}


def test_the_operators_lines_mean_the_same_and_hold_nothing_unprintable() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (f"\x9b{TITLE}",), None)
    record.fields = {"key": "\u202e\ud800\u00fc"}
    line = JsonFormatter().format(record)
    assert line.isprintable()
    assert json.loads(line)["key"] == "\u202e\ud800\u00fc"


def test_a_plan_is_a_line_that_holds_nothing_unprintable() -> None:
    key = f"/jupiter/\u202e{TITLE}"
    line = describe("default", Plan("u", 1, (PutEdit(key.encode(), b"\x7f", 0),)))
    assert line.isprintable()
    assert json.loads(line)["put"] == {key: "\x7f"}
