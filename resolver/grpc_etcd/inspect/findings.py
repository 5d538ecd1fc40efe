"""One thing that is wrong: its code, where it is, and the command that fixes it. Pure."""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from grpc_etcd.inspect.codes import Code, Severity

SEVERITIES = tuple(Severity)
MOST_SUBJECTS = 3  # arbitrary: a line is read by people
OPERATORS = "app.kubernetes.io/component=operator"  # the label of the chart's Deployments and their Pods
SHOW_OPERATORS = f"kubectl get pods --all-namespaces -l {OPERATORS}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, where, and what to do."""

    code: Code
    subject: str
    problem: str
    remedy: str

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.code.severity

    @property
    def is_error(self) -> bool:
        """Return whether callers fail, or will."""
        return self.severity is Severity.ERROR


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Order findings, the worst first, and each once."""
    return sorted(dict.fromkeys(findings), key=lambda each: SEVERITIES.index(each.severity))


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Join findings that differ in their subject alone, for people: an outage has one cause and many GrpcServices."""
    groups: dict[tuple[Code, str, str], list[str]] = {}
    for each in findings:
        groups.setdefault((each.code, each.problem, each.remedy), []).append(each.subject)
    return [Finding(code, _join(subjects), problem, remedy) for (code, problem, remedy), subjects in groups.items()]


def _join(subjects: Sequence[str]) -> str:
    """Write subjects with the kind that they share once; the first of many."""
    kind = subjects[0].rpartition(" ")[0]
    names = [each.removeprefix(f"{kind} ") for each in subjects[1:MOST_SUBJECTS]]
    more = len(subjects) - MOST_SUBJECTS
    return ", ".join((subjects[0], *names)) + (f" and {more} more" if more > 0 else "")


def finding_json(finding: Finding) -> dict[str, str]:
    """Write a finding for programs."""
    return {
        "code": finding.code.value,
        "severity": finding.severity.value,
        "subject": finding.subject,
        "problem": finding.problem,
        "remedy": finding.remedy,
        "page": finding.code.page,
    }


def kubectl(namespace: str, *words: str) -> str:
    """Write a command for a namespace; what stands in it may be anybody's, so each word is quoted."""
    return shlex.join(("kubectl", *(("-n", namespace) if namespace else ()), *words))


def patch_command(namespace: str, name: str, spec: dict[str, Any]) -> str:
    """Write the command that changes fields of a GrpcService's spec."""
    return kubectl(namespace, "patch", "grpcservice", name, "--type", "merge", "-p", json.dumps({"spec": spec}))
