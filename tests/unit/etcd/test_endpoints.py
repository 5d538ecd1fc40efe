"""Endpoints become one gRPC target each; the options make failures and changed addresses show soon."""

import pytest

from grpc_etcd.etcd.dialing import make_dialer
from grpc_etcd.etcd.endpoints import Tls, make_options


@pytest.mark.parametrize(
    ("endpoints", "targets"),
    [
        ("etcd", ("dns:///etcd:2379",)),
        ("https://a:1,https://b:2", ("dns:///a:1", "dns:///b:2")),
        ("10.0.0.1,10.0.0.2:3,[fd00::1]:4", ("ipv4:10.0.0.1:2379", "ipv4:10.0.0.2:3", "ipv6:[fd00::1]:4")),
        ("a:1,a:1", ("dns:///a:1",)),
        ("dns:///a,dns:///b,c:1", ("dns:///a", "dns:///b", "dns:///c:1")),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ("ipv4:10.0.0.1:1,10.0.0.2:2",)),
        ("ipv4:10.0.0.1:2379", ("ipv4:10.0.0.1:2379",)),
    ],
)
def test_each_endpoint_is_a_target_of_its_own(endpoints: str, targets: tuple[str, ...]) -> None:
    assert make_dialer(endpoints, None).targets == targets


@pytest.mark.parametrize(
    ("endpoints", "said"),
    [
        ("http://app:secret@etcd:2379", "have their own settings"),
        ("app:secret@etcd", "have their own settings"),
        ("etcd-0:2379;etcd-1:2379", "host:port is expected"),
        ("etcd-0:2379 etcd-1:2379", "host:port is expected"),
        ("https://etcd-0:2379,http://etcd-1:2379", "all or none"),
    ],
)
def test_what_can_be_no_endpoint_is_refused_without_its_password(endpoints: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        make_dialer(endpoints, None)
    assert "secret" not in str(refused.value)


def test_a_target_of_several_addresses_stays_what_it_is() -> None:
    assert make_dialer(["ipv4:10.0.0.1:1,10.0.0.2:2"], None).targets == ("ipv4:10.0.0.1:1,10.0.0.2:2",)


def test_https_means_tls_with_public_authorities_and_no_files() -> None:
    dialer = make_dialer("https://etcd.example.com", None)
    assert dialer.tls == Tls()
    assert dialer.facts().ca is None
    assert not dialer.may_change
    assert make_dialer("etcd.example.com", None).tls is None


def test_a_name_is_overridden_only_where_one_is_given() -> None:
    assert "grpc.ssl_target_name_override" not in dict(make_options(Tls()))
    assert dict(make_options(Tls(server_name="etcd")))["grpc.ssl_target_name_override"] == "etcd"


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("dns:///etcd.infra.:2379", "etcd.infra"),
        ("dns:etcd.", "etcd"),
        ("dns://10.0.0.1/etcd.:1", "etcd"),
        ("dns:///etcd:2379", ""),
        ("ipv6:[::1]:1", ""),
    ],
)
def test_a_name_that_ends_with_a_dot_is_known_without_it(target: str, name: str) -> None:
    assert dict(make_options(Tls(), target)).get("grpc.ssl_target_name_override", "") == name
    assert "grpc.ssl_target_name_override" not in dict(make_options(None, target))
    assert dict(make_options(Tls(server_name="a"), target))["grpc.ssl_target_name_override"] == "a"


def test_names_are_looked_up_again_within_two_seconds() -> None:
    assert dict(make_options(None))["grpc.dns_min_time_between_resolutions_ms"] == 2_000
