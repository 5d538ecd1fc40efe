"""JSON as Go has it; the expected bytes were printed by Go 1.26's encoding/json."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.layouts import gojson

FIELDS = gojson.fold_names("appId", "name", "weight", "kind", "enable", "metadata")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a<b>&c", b'"a\\u003cb\\u003e\\u0026c"'),
        ("\u2028\u2029", b'"\\u2028\\u2029"'),
        ('"\\/', b'"\\"\\\\/"'),
        ("\b\f\n\r\t\x00\x1f\x7f", b'"\\b\\f\\n\\r\\t\\u0000\\u001f\x7f"'),
        ("\u4f60\u597d\U0001f600", '"\u4f60\u597d\U0001f600"'.encode()),
        ("\udcff", b'"\\ufffd"'),
        ("\ufffd", b'"\xef\xbf\xbd"'),
    ],
)
def test_strings_are_escaped_as_go_does(text: str, written: bytes) -> None:
    assert gojson.to_bytes(gojson.quoted(text)) == written


@pytest.mark.parametrize("character", ["<", ">", "&", "\u2028", "\udcff", '"', "\x00", "\u4f60"])
def test_escaping_takes_no_call_per_character(character: str) -> None:
    """A GrpcService may hold a megabyte of them, which is written for each of its Pods and layouts."""

    def count_calls(length: int) -> int:
        calls = 0

        def note(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(note)
        try:
            gojson.to_bytes(gojson.quoted(character * length))
        finally:
            sys.setprofile(None)
        return calls

    count_calls(1)  # compiles what is kept from then on
    assert count_calls(1000) == count_calls(1)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (100, "100"),
        (100.0, "100"),
        (0, "0"),
        (0.5, "0.5"),
        (-2.25, "-2.25"),
        (1e-6, "0.000001"),
        (1.5e-5, "0.000015"),
        (1e-7, "1e-7"),
        (1.25e-10, "1.25e-10"),
        (1e15, "1000000000000000"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
    ],
)
def test_numbers_have_gos_form(value: float, written: str) -> None:
    assert gojson.number(value) == written


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_the_same(value: float) -> None:
    assert float(gojson.number(value)) == value


@given(st.text())
def test_a_string_reads_back_the_same(text: str) -> None:
    assert json.loads(gojson.to_bytes(gojson.quoted(text))) == text


def test_maps_are_sorted_and_none_is_null() -> None:
    assert gojson.quoted_map({"b": "2", "a": "1", "B": "3"}) == '{"B":"3","a":"1","b":"2"}'
    assert gojson.quoted_map({}) == "{}"
    assert gojson.quoted_map(None) == "null"


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"[]", b"1", b'"x"', b"{", b"{}x", b"NaN", b'{"weight":NaN}', b'{"weight":Infinity}', b"\xef\xbb\xbf{}"),
        *(b'{"a":' * 200_000, b'{"weight":' + b"9" * 5000 + b"}", b'{"name":"a\nb"}', b"{'name':1}", b"\xff\xfe{\x00"),
    ],
)
def test_what_go_would_refuse_is_refused(value: bytes) -> None:
    with pytest.raises(gojson.GoJsonError):
        gojson.parse_struct(value, FIELDS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"null", {}),
        (b"{}", {}),
        (b' {"name" : "x"} \r\n', {"name": "x"}),
        (b'{"NAME":"x"}', {"name": "x"}),
        (b'{"appid":"x"}', {"appId": "x"}),
        (b'{"name":"a","APPID":"x","appId":"y"}', {"appId": "y"}),
        (b'{"enable":true,"ENABLE":false}', {"enable": False}),
        (b'{"name":"x","Name":null}', {"name": "x"}),
        (b'{"other":[1,{"deep":null}],"name":"x"}', {"name": "x"}),
        ('{"\u212aind":1}'.encode(), {"kind": 1}),
        (b'{"name":"a\xffb\xe4\xbd"}', {"name": "a\ufffdb\ufffd\ufffd"}),
        (b'{"name":"\\ud800x"}', {"name": "\ufffdx"}),
        (b'{"name":"\\ud83d\\ude00"}', {"name": "\U0001f600"}),
    ],
)
def test_structs_are_read_as_go_does(value: bytes, expected: dict[str, object]) -> None:
    struct = gojson.parse_struct(value, FIELDS)
    assert {name: struct.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("value", "reads"),
    [
        (b'{"weight":100.0}', 100),
        (b'{"weight":1e2}', 100),
        (b'{"weight":0.5}', 0.5),
        (b'{"weight":null}', 0),
        (b'{"weight":-0}', 0),
        (b'{"weight":"100"}', None),
        (b'{"weight":true}', None),
        (b'{"weight":1e400}', None),
        (b'{"weight":' + b"9" * 400 + b"}", None),
    ],
)
def test_floats_are_read_as_go_does(value: bytes, reads: float | None) -> None:
    struct = gojson.parse_struct(value, FIELDS)
    if reads is None:
        with pytest.raises(gojson.GoJsonError, match="weight"):
            gojson.real(struct, "weight")
    else:
        assert gojson.real(struct, "weight") == reads


@pytest.mark.parametrize("value", [b'{"kind":"1"}', b'{"kind":1.0}', b'{"kind":256}', b'{"kind":-1}', b'{"kind":true}'])
def test_integers_are_read_as_go_does(value: bytes) -> None:
    with pytest.raises(gojson.GoJsonError, match="kind"):
        gojson.integer(gojson.parse_struct(value, FIELDS), "kind", 0, gojson.UINT8_MAX)


def test_a_null_in_a_map_of_strings_is_empty() -> None:
    struct = gojson.parse_struct(b'{"metadata":{"a":null,"b":"x","c":null}}', FIELDS)
    assert gojson.text_map(struct, "metadata") == {"a": "", "b": "x", "c": ""}


@pytest.mark.parametrize("value", [b'{"metadata":{"a":1}}', b'{"metadata":[]}', b'{"metadata":"x"}'])
def test_a_map_of_strings_holds_only_strings(value: bytes) -> None:
    with pytest.raises(gojson.GoJsonError, match="metadata"):
        gojson.text_map(gojson.parse_struct(value, FIELDS), "metadata")
