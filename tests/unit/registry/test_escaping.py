"""What a terminal would obey, or an eye be fooled by, is shown as an escape; everything else as it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.registry.escaping import escape, escape_bytes, escape_json, escape_lines

anything = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.7:9000 \u00fc\u4e2d\U0001f600", "10.0.0.7:9000 \u00fc\u4e2d\U0001f600"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("\u202eevil\u2066\u200f", r"\u202eevil\u2066\u200f"),
        ("a\u2028b\u00a0c", r"a\u2028b\xa0c"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(anything)
def test_nothing_unprintable_is_left_on_any_line(text: str) -> None:
    assert escape(text).isprintable()
    assert all(line.isprintable() for line in escape_lines(text).split("\n"))
    assert escape_lines(text).count("\n") == text.count("\n")
    escape(text).encode()  # no surrogate is left


@given(st.binary())
def test_bytes_that_are_no_text_are_shown_too(data: bytes) -> None:
    assert escape_bytes(data).isprintable()


@given(st.dictionaries(anything, st.lists(anything)), st.sampled_from([None, 2]))
def test_json_means_the_same(data: dict[str, list[str]], indent: int | None) -> None:
    document = escape_json(json.dumps(data, ensure_ascii=False, indent=indent))
    assert json.loads(document) == json.loads(json.dumps(data))
    assert all(line.isprintable() for line in document.split("\n"))
