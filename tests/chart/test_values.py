"""Which values the chart takes, which it refuses by name, and that each is documented."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from testbed import chart
from testbed.helm import HelmError, render
from tests.chart.test_rendering import ALL, BUNDLED, ETCD, NAMESPACED, container, merge


@pytest.mark.parametrize("values", [{"registries": None}, {"clientConfig": {"extra": None}}])
def test_a_mapping_of_ones_own_may_be_emptied_by_null(values: dict[str, Any]) -> None:
    """`--set registries=null` is how an upgrade that reuses values takes all of them away."""
    assert not any(arg.startswith("--config=") for arg in container(render(ETCD | values))["args"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": (ETCD | {"replicaCount": 3}, "replicaCount"),
    "unknown value deep inside": ({"etcd": {"endpoints": ["e:1"], "tls": {"secret": "x"}}}, "secret"),
    "no etcd": ({}, "etcd.endpoints is empty"),
    "etcd twice": ({"etcd": {"endpoints": ["e:1"], "bundled": {"enabled": True}}}, "exclude each other"),
    "a URL with a path as endpoint": ({"etcd": {"endpoints": ["https://e:2379/v3"]}}, "/etcd/endpoints/0"),
    "a URL of another kind as endpoint": ({"etcd": {"endpoints": ["ftp://e:2379"]}}, "/etcd/endpoints/0"),
    "http and https": ({"etcd": {"endpoints": ["http://e:1", "https://f:1"]}}, "mixes http and https"),
    "http with a Secret": ({"etcd": {"endpoints": ["http://e:1"], "tls": {"secretName": "s"}}}, "says http://"),
    "a server name without TLS": ({"etcd": {"endpoints": ["e:1"], "tls": {"serverName": "s"}}}, "TLS is off"),
    "a Secret of which nothing is used": (
        {"etcd": {"endpoints": ["https://e:1"], "tls": {"secretName": "s", "caKey": ""}}},
        "etcd.tls.caKey",
    ),
    "gates where nothing is watched": (
        NAMESPACED | {"readinessGate": {"namespaces": ["elsewhere"]}},
        "readinessGate.namespaces contains elsewhere",
    ),
    "an endpoint without port": ({"etcd": {"endpoints": ["e"]}}, "/etcd/endpoints/0"),
    "lease too short": (ETCD | {"leaseTtlSeconds": 5}, "leaseTtlSeconds"),
    "a text as number": (ETCD | {"replicas": "2"}, "replicas"),
    "no replica": (ETCD | {"replicas": 0}, "replicas"),
    "namespaces without an id": (ETCD | {"watchNamespaces": ["a"]}, "clusterId is empty"),
    "user without Secret": ({"etcd": {"endpoints": ["e:1"], "auth": {"user": "u"}}}, "etcd.auth.secretName"),
    "half a certificate": (
        {"etcd": {"endpoints": ["e:1"], "tls": {"secretName": "s", "certKey": "c"}}},
        "etcd.tls.keyKey",
    ),
    "half a certificate elsewhere": (
        ETCD | {"registries": {"dr": {"endpoints": ["e:1"], "tls": {"secretName": "s", "keyKey": "c"}}}},
        "registries.dr.tls.certKey",
    ),
    "a registry called default": (ETCD | {"registries": {"default": {"endpoints": ["e:1"]}}}, "registries.default"),
    "a registry by a name that no GrpcService can use": (
        ETCD | {"registries": {"DR": {"endpoints": ["e:1"]}}},
        "/registries",
    ),
    "cleanup of an etcd that goes as well": (
        BUNDLED | {"cleanup": {"enabled": True}},
        "cleanup.enabled has no use",
    ),
    "a name that may be of one namespace alone": (
        {"etcd": {"endpoints": ["node-1.apps:1"]}, "clientConfig": {"namespaces": ["shop"]}},
        "node-1.apps:1 may be a name of the namespace default alone",
    ),
    "a runbook that is no URL": (
        ETCD | {"prometheusRule": {"runbookBaseUrl": "docs/operations.md#"}},
        "--reset-then-reuse-values",  # it was the default of an older chart
    ),
    "a runbook without a host": (
        ETCD | {"prometheusRule": {"runbookBaseUrl": "https:///operations#"}},
        'prometheusRule.runbookBaseUrl is "https:///operations#"',
    ),
    "a CA that clients do not get": (
        {"etcd": {"endpoints": ["e:1"], "tls": {"secretName": "s"}}},
        "--set-file clientConfig.ca=ca.crt",
    ),
    "a repository with its tag": (
        ETCD | {"image": {"repository": "registry.example.com/grpc-etcd-operator:0.1.0"}},
        "write it in image.tag or image.digest",
    ),
    "a repository of etcd with its digest": (
        {"etcd": {"bundled": {"enabled": True, "image": {"repository": "registry.example.com:5000/etcd@sha256:0"}}}},
        "write it in etcd.bundled.image.tag or etcd.bundled.image.digest",
    ),
    "a path as CA": (ETCD | {"clientConfig": {"ca": "/ca.crt"}}, "/clientConfig/ca"),
    "users, but none for clients": (
        {"etcd": {"endpoints": ["e:1"], "auth": {"user": "u", "secretName": "s"}}},
        "clientConfig.auth.user is empty",
    ),
    "a user of clients without a password": (
        ETCD | {"clientConfig": {"auth": {"user": "u"}}},
        "clientConfig.auth.secretName belong together",
    ),
    "defaults of a chart that knew no users of clients": (
        ETCD | {"clientConfig": {"auth": None}},
        "--reset-then-reuse-values",
    ),
    "a gate for Pods that the operator does not see": (
        ETCD | {"readinessGate": {"inject": True}, "podSelector": "tier=grpc"},
        "readinessGate.inject would add the gate to Pods that podSelector (tier=grpc) does not select",
    ),
    "a gate that may not be opened": (
        ETCD | {"readinessGate": {"inject": True, "enabled": False}},
        "readinessGate.inject adds gates that readinessGate.enabled=false does not allow the operator to open",
    ),
    "TLS for the bundled etcd": (
        {"etcd": {"bundled": {"enabled": True}, "tls": {"secretName": "s"}}},
        "do not apply to the bundled etcd",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_values_are_refused_by_name(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError) as refusal:
        render(values)
    assert sentence in str(refusal.value)


FREE = ("resources", "podSecurityContext", "securityContext", "labels")  # of which an admin may take any part out


def _paths(values: dict[str, Any], *path: str) -> Iterator[tuple[str, ...]]:
    """Give the paths of all sections and values, but for what is free in them."""
    for name, value in values.items():
        if name in FREE:
            continue
        yield (*path, name)
        if isinstance(value, dict):
            yield from _paths(value, *path, name)


def _nest(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


@functools.cache
def _render_without(section: str = "") -> Any:
    """Render with everything switched on but for one section."""
    return render({name: value for name, value in ALL.items() if name != section})


DEFAULTS = yaml.safe_load((chart.CHART / "values.yaml").read_text())


@pytest.mark.parametrize("path", sorted(_paths(DEFAULTS)), ids=".".join)
def test_what_an_older_chart_did_not_know_is_refused_with_the_flag_to_use(path: tuple[str, ...]) -> None:
    """`--reuse-values` gives the templates the older chart's defaults in place of this one's: they lack what is new."""
    try:
        rendered = render(merge(ALL, _nest(path, None)))
    except HelmError as refusal:
        said = str(refusal)
        assert "--reset-then-reuse-values" in said or "etcd.endpoints is empty" in said
    else:
        assert rendered == _render_without(*path[:1] if path == (path[0], "enabled") else ())


def test_every_value_is_documented_and_in_the_schema() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    documented = {path for path, _ in chart.documented_values()}
    for path in _leaves(values, schema):
        assert path in documented or path.rpartition(".")[0] in documented, f"{path} has no comment"


def _leaves(values: dict[str, Any], schema: dict[str, Any], at: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        assert name in schema["properties"], f"{at}{name} is not in the schema"
        inner = schema["properties"][name]
        if isinstance(value, dict) and "properties" in inner:
            # Under `global` other charts have theirs.
            assert inner["additionalProperties"] is False if name != "global" else "additionalProperties" not in inner
            found += _leaves(value, inner, f"{at}{name}.")
        else:
            found.append(f"{at}{name}")
    return found
