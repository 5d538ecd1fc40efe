"""Ask Prometheus' own evaluator, without a server: promtool answers queries from series that it is given."""

import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from testbed.build import binary

# What Prometheus adds to each series that it scrapes from a Pod.
PLACE = {"namespace": "ops", "pod": "grpc-etcd-operator-6d5f7c9b8-x2k4z", "job": "grpc-etcd-operator-metrics"}
EACH_MINUTES = 5
Series = Sequence[Mapping[str, str]]


def scraped(*texts: str, each_minutes: int = EACH_MINUTES) -> Series:
    """Make series of what a metrics port said at several times, as if each had been said for some minutes.

    A text of nothing is a time at which nobody answered. promtool's clock begins at 0, so points in time are told as
    from now on.
    """
    values: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for number, text in enumerate(texts):
        for name, labels, value in _samples(text):
            found = values.setdefault((name, labels), ["_"] * each_minutes * len(texts))
            found[number * each_minutes : (number + 1) * each_minutes] = [str(value)] * each_minutes
    return [{"series": _selector(name, labels), "values": " ".join(each)} for (name, labels), each in values.items()]


def _samples(text: str) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            is_time = sample.name.endswith("_timestamp_seconds")
            yield sample.name, tuple(sorted(sample.labels.items())), sample.value - time.time() * is_time


def _selector(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    inner = ", ".join(f'{key}="{value}"' for key, value in (*PLACE.items(), *labels))
    return f"{name}{{{inner}}}"


def firing(rules: Mapping[str, Any], series: Series, folder: Path, minutes: int) -> set[str]:
    """Ask which alerts fire after so many minutes."""
    return set(re.findall(r"alertname: (\w+),", _evaluate(rules, series, folder, minutes)))


def summaries(rules: Mapping[str, Any], series: Series, folder: Path, minutes: int) -> list[str]:
    """Ask with what summaries alerts fire after so many minutes."""
    return re.findall(r'summary="([^"]*)"', _evaluate(rules, series, folder, minutes))


def _evaluate(rules: Mapping[str, Any], series: Series, folder: Path, minutes: int) -> str:
    """Return what promtool says of all alerts that fire: it does so when the test expects none."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    expected = [{"eval_time": f"{minutes}m", "alertname": name, "exp_alerts": []} for name in names]
    tests = [{"interval": "1m", "input_series": list(series), "alert_rule_test": expected}]
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    answer = subprocess.run(
        [binary("promtool"), "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    said = answer.stdout + answer.stderr
    if answer.returncode and "alertname" not in said:
        raise ValueError(f"promtool refuses the rules: {said}")
    return said


def answered(queries: Mapping[str, str], series: Series, folder: Path) -> set[str]:
    """Give the names of the queries to which there is an answer at the end of the series."""
    return {name for name, query in queries.items() if _has_answer(query, series, folder)}


def _has_answer(query: str, series: Series, folder: Path) -> bool:
    """Tell promtool to expect nothing: it fails, and says what it got, when there is an answer."""
    end_minutes = len(series[0]["values"].split()) - 1
    expected: dict[str, Any] = {"expr": query, "eval_time": f"{end_minutes}m", "exp_samples": []}
    tests = [{"interval": "1m", "input_series": list(series), "promql_expr_test": [expected]}]
    (folder / "query.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    command: list[str | Path] = [binary("promtool"), "test", "rules", "query.yaml"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = answer.stdout + answer.stderr
    if answer.returncode and "got:" not in said:
        raise ValueError(f"promtool refuses {query}: {said}")
    return answer.returncode != 0
