"""Endpoints and their addresses: what nobody can dial is none."""

import pytest

from grpc_etcd.registry.endpoint import address_fault, split_address


@pytest.mark.parametrize("length", [1, 253, 254])
def test_a_host_name_may_be_as_long_as_the_dns_allows(length: int) -> None:
    assert split_address(f"{'a' * length}:80") == ("a" * length, 80)


@pytest.mark.parametrize("length", [0, 255, 1_000_000])
def test_a_longer_host_name_is_none(length: int) -> None:
    """It would be looked up in vain, and stand in the log, in `stats()` and in the details of each call, whole."""
    assert split_address(f"{'a' * length}:80") is None
    assert address_fault(f"{'a' * length}:80")
