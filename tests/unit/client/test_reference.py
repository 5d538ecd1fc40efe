"""The reference of the API: every public name, method and field is in it, and says its units, ranges and errors."""

import dataclasses
import inspect
import re
import typing

import pytest

import grpc_etcd
from grpc_etcd.registry import policy
from testbed.api_reference import PAGE, public_methods, public_objects
from testbed.conditions import existing

TEXT = PAGE.read_text()
CLASSES = {name: each for name, each in public_objects().items() if isinstance(each, type)}
# Whose constructors check what they are given: they say what they raise.
CHECKED = ("Endpoint", "LoadBalancing", "LocalityPreference", "OutlierDetection", "Policy", "Registry", "Retry")


def section(name: str) -> str:
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"{name} is not in {PAGE.name}"
    return found[1]


@pytest.mark.parametrize("name", public_objects())
def test_every_public_name_has_a_section_that_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(public_objects()[name])
    assert text
    assert text in section(name)


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_and_field_is_shown(name: str) -> None:
    described, text = CLASSES[name], section(name)
    missing = [method for method, _ in public_methods(described) if f"### {described.__name__}.{method}\n" not in text]
    assert missing == []
    assert [method for method, each in public_methods(described) if not inspect.getdoc(each)] == []
    fields = [field.name for field in dataclasses.fields(described)] if dataclasses.is_dataclass(described) else []
    fields += list(described.__annotations__) if typing.is_typeddict(described) else []
    assert [field for field in fields if f"`{field}`" not in text] == []


@pytest.mark.parametrize("part", [*policy._FIELDS, policy.Policy])
def test_the_range_of_every_number_is_said(part: type) -> None:
    """The bounds stand in the table that policies are checked with; the docstring has the same numbers."""
    fields = policy._FIELDS.get(part, policy._SCALARS).values()
    text = " ".join(section(f"grpc_etcd.{part.__name__}").split())
    for field in fields:
        low, high = bounds(field)
        if low is not None:
            assert re.search(rf"\b{re.escape(low)} to {re.escape(existing(high))}\b", text), (
                f"{field.attribute}: {low} to {high}"
            )


def bounds(field: policy._Field) -> tuple[str, str] | tuple[None, None]:
    """Take the range from the complaint about a number that is far outside of it."""
    try:
        field.check(-1)
    except (TypeError, ValueError) as error:
        found = re.search(r"is not between ([\d.]+) and ([\d.e+]+)", str(error))
        return (found[1], found[2].replace("1e+06", "1000000")) if found else (None, None)
    return None, None


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_checked_says_what_it_raises(name: str) -> None:
    assert re.search(r"Raises .*(ValueError|TypeError)", " ".join(section(f"grpc_etcd.{name}").split()))


def test_what_an_application_needs_is_exported() -> None:
    needed = {"EtcdError", "Tls", "Layout", "State", "Status", "RegistryOptions", "RegisterOptions"}
    assert needed <= set(grpc_etcd.__all__)


def test_what_most_programs_use_comes_first() -> None:
    headings = [line for line in TEXT.splitlines() if line.startswith("## ")]
    assert headings[:2] == ["## grpc_etcd.Registry", "## grpc_etcd.RegistryOptions"]
