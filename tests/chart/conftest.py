"""Fixtures of the chart's tests."""

import json
from typing import Any

import pytest

from testbed.apiserver import ApiServer
from testbed.manifests import wait_established

MONITORING = {"ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}


def monitoring_crd(kind: str, plural: str) -> dict[str, Any]:
    """Make a CRD that takes any spec: the Prometheus operator's own is not part of the test bed."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


@pytest.fixture
def cluster(own_apiserver: ApiServer) -> ApiServer:
    """An API server without our CRD, which the chart brings, and with the Prometheus operator's kinds."""
    for kind, plural in MONITORING.items():
        own_apiserver.kubectl("create", "-f", "-", stdin=json.dumps(monitoring_crd(kind, plural)))
        wait_established(own_apiserver.client, f"{plural}.monitoring.coreos.com")
    return own_apiserver
