"""Write docs/alerts.yaml, the alerts as a plain rule file of Prometheus: `python -m testbed.alerts`.

The chart's PrometheusRule covers one installation, in the Prometheus of its own cluster. The plain file is for a
Prometheus, Thanos or Mimir that has the metrics of many clusters: there the label `cluster` distinguishes them. It is
made from what Helm renders, so it is no part of `make gen`, which has no Helm; tests/chart/test_monitoring.py says when
it is stale.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from testbed import helm
from testbed.build import ROOT

FILE = ROOT / "docs/alerts.yaml"
HEAD = """\
# The alerts of docs/operations.md as a plain rule file, for a Prometheus that has the metrics of several clusters and
# gives each its own label `cluster`. Made from the chart by `python -m testbed.alerts`; edit templates/_alerts.tpl.
# Times are those of the default leaseTtlSeconds, 300. Installations are distinguished by cluster and namespace.
"""
OWN_REPLICAS = re.compile(r'namespace="[^"]*", pod=~"[^"]*"(?:, )?')
GROUPING = re.compile(r"\b(by|on) \(")
DOWN = "GrpcEtcdOperatorDown"
# absent() knows of no clusters: what was scraped within a day and is no more is missing, in each by itself.
DOWN_EXPRESSION = (
    "group by (cluster, namespace) (last_over_time(grpc_etcd_operator_leader[1d]))"
    " unless group by (cluster, namespace) (grpc_etcd_operator_leader) or absent(grpc_etcd_operator_leader)"
)


def text() -> str:
    """Give the file's text."""
    values = {"etcd": {"endpoints": ["etcd:2379"]}, "prometheusRule": {"enabled": True, "clients": True}}
    rules = helm.find(helm.render(values), "PrometheusRule")["spec"]
    return HEAD + yaml.safe_dump(spread(rules), sort_keys=False, width=1000)


def spread(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Make rules that one installation evaluates those of any number of clusters."""
    return {"groups": [{**group, "rules": list(map(_spread_rule, group["rules"]))} for group in rules["groups"]]}


def _spread_rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    expression = DOWN_EXPRESSION if rule["alert"] == DOWN else _spread_expression(rule["expr"])
    summary = f"{rule['annotations']['summary']}, cluster {{{{ $labels.cluster }}}}"
    return {**rule, "expr": expression, "annotations": {**rule["annotations"], "summary": summary}}


def _spread_expression(expression: str) -> str:
    everywhere = re.sub(r"\{\s*\}", "", OWN_REPLICAS.sub("", expression))
    return GROUPING.sub(r"\1 (cluster, ", everywhere)


def main(file: Path = FILE) -> None:
    """Write the file."""
    file.write_text(text())


if __name__ == "__main__":
    main()
