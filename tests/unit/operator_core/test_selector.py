"""Selectors decide as Kubernetes documents them, and what is wrong with one is said."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.selector import parse_selector

keys = st.sampled_from(["app", "tier", "zone"])
values = st.sampled_from(["a", "b", "c"])
labels = st.dictionaries(keys, values)
requirement = st.one_of(
    st.builds(
        lambda key, operator, some: {"key": key, "operator": operator, "values": some},
        keys,
        st.sampled_from(["In", "NotIn"]),
        st.lists(values, min_size=1, max_size=3),
    ),
    st.builds(
        lambda key, operator: {"key": key, "operator": operator}, keys, st.sampled_from(["Exists", "DoesNotExist"])
    ),
)
selectors = st.fixed_dictionaries({"matchLabels": labels, "matchExpressions": st.lists(requirement, max_size=3)})


def meets(raw: dict[str, Any], held: dict[str, str]) -> bool:
    """One requirement, in the words of the API reference of LabelSelectorRequirement."""
    key, named = raw["key"], raw.get("values", [])
    return {
        "In": held.get(key) in named,
        "NotIn": held.get(key) not in named,
        "Exists": key in held,
        "DoesNotExist": key not in held,
    }[raw["operator"]]


@given(selectors, labels)
def test_all_parts_of_a_selector_must_match(raw: dict[str, Any], held: dict[str, str]) -> None:
    faults: list[str] = []
    selector = parse_selector(raw, faults)
    assert bool(faults) == (not raw["matchLabels"] and not raw["matchExpressions"])
    wanted = raw["matchLabels"].items() <= held.items() and all(meets(each, held) for each in raw["matchExpressions"])
    assert selector.matches(held) == wanted


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "is empty"),
        *(
            ({"matchLabels": {key: value}}, f"no Pod can have the label {key!r} with the value {value!r}")
            for key, value in (("a b", "c"), ("a", "b "), ("a", "-b"), ("/a", "b"), ("a/b/c", "d"), ("a" * 64, "b"))
        ),
        *(
            ({"matchExpressions": [{"key": "a ", "operator": operator, "values": some}]}, "with the key 'a '")
            for operator, some in (("In", ["b"]), ("NotIn", ["b"]), ("Exists", []), ("DoesNotExist", []))
        ),
        *(
            ({"matchExpressions": [{"key": "a", "operator": operator, "values": ["b", "c "]}]}, "with the value 'c '")
            for operator in ("In", "NotIn")
        ),
        ({"matchExpressions": [{"operator": "Exists"}]}, "has no key"),
        ({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]}, "'Like' is not one of In, NotIn"),
        ({"matchExpressions": [{"key": "a", "operator": "In"}]}, "must have values"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}, "must not have values"),
    ],
)
def test_what_is_wrong_is_said(raw: dict[str, Any], said: str) -> None:
    faults: list[str] = []
    parse_selector(raw, faults)
    assert any(said in fault for fault in faults), faults


@pytest.mark.parametrize("key", ["a", "app.kubernetes.io/name", "x/A_b.c-9", "a" * 63, f"{'d' * 253}/k"])
@pytest.mark.parametrize("value", ["", "b", "v1.2_3-x", "c" * 63])
def test_labels_that_pods_can_have_are_no_fault(key: str, value: str) -> None:
    faults: list[str] = []
    assert parse_selector({"matchLabels": {key: value}}, faults).matches({key: value})
    requirement = {"key": key, "operator": "In", "values": [value]}
    assert parse_selector({"matchExpressions": [requirement]}, faults).matches({key: value})
    assert faults == []
