"""URLs as Go's net/url takes them; outcomes were printed by Go for the same strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.layouts.gourl import parse_url


@pytest.mark.parametrize(
    ("text", "scheme", "host", "path"),
    [
        ("grpc://10.0.0.1:9090", "grpc", "10.0.0.1:9090", ""),
        ("grpc://[2001:db8::1]:9090", "grpc", "[2001:db8::1]:9090", ""),
        ("grpc://2001:db8::1:9090", "grpc", "2001:db8::1:9090", ""),
        ("grpc://[fe80::1%25eth0]:9090", "grpc", "[fe80::1%eth0]:9090", ""),
        ("grpc://10.0.0.1", "grpc", "10.0.0.1", ""),
        ("grpc://:9092", "grpc", ":9092", ""),
        ("grpc://pod_a.ns:9090", "grpc", "pod_a.ns:9090", ""),
        ("grpc://u@h:1", "grpc", "h:1", ""),
        ("grpc://h:1/", "grpc", "h:1", "/"),
        ("grpc://h:1?weight=1", "grpc", "h:1", ""),
        ("grpc://", "grpc", "", ""),
        ("grpc:///routes/1", "grpc", "", "/routes/1"),
        ("grpc://127.0.0.1:1980/routes/2", "grpc", "127.0.0.1:1980", "/routes/2"),
        ("grpc:///routes/a%2Fb", "grpc", "", "/routes/a/b"),
        ("grpc:///routes/\u4f60\u597d", "grpc", "", "/routes/\u4f60\u597d"),
        ("grpc:/routes/1", "grpc", "", "/routes/1"),
        ("grpc:///?host=10.0.0.1:59230", "grpc", "", "/"),
        ("GRPC://h:1", "grpc", "h:1", ""),
        ("grpcs://h:1", "grpcs", "h:1", ""),
        ("grpc-web://h:1", "grpc-web", "h:1", ""),
    ],
)
def test_what_go_parses(text: str, scheme: str, host: str, path: str) -> None:
    assert parse_url(text) == (scheme, host, path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "grpc_web://h:1", "://h:1", "1grpc://h:1", "grpc://fe80::1%eth0:9090", "grpc://10.0.0.1:grpc"),
        *("grpc://[::1:1", "grpc://[::1]x", "grpc://h h:1", "grpc://h:1/%zz", "grpc://h\x00:1", "grpc://h%41:1"),
        *("grpc://u u@h:1", "grpc://h:1#%2", "grpc://h|:1", "grpc://h:1/\x7f"),
    ],
)
def test_what_go_refuses_or_takes_for_a_bare_path(text: str) -> None:
    assert parse_url(text) is None


@given(st.text() | st.from_regex(r"grpc://[^a]{0,20}"))
def test_nothing_raises(text: str) -> None:
    parse_url(text)
