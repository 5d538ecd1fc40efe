"""Each code has a section in docs/checks.md with its severity and its words, each section a code, and each is used."""

import re

from grpc_etcd.inspect.codes import PAGE, Code
from testbed.build import ROOT

TEXT = (ROOT / PAGE).read_text()


def test_the_page_has_a_section_for_each_code_in_order() -> None:
    sections = re.findall(r"^## (.*)\n\n\*\*(.*)\*\* \((\w+)\)\.$", TEXT, re.MULTILINE)
    assert sections == [(each.value, each.summary, each.severity.value) for each in Code]
    assert sections == sorted(sections)


def test_each_section_says_more_than_its_title() -> None:
    bodies = re.split(r"^## .*$", TEXT, flags=re.MULTILINE)[1:]
    assert [body for body in bodies if len(body.strip().splitlines()) < 2] == []


def test_each_code_is_used_where_something_is_found() -> None:
    modules = [*(ROOT / "resolver/grpc_etcd/inspect").glob("*.py"), *(ROOT / "resolver/grpc_etcd/cli").glob("*.py")]
    text = "".join(path.read_text() for path in modules if path.name != "codes.py")
    assert [each for each in Code if f"Code.{each.name}" not in text] == []


def test_codes_are_what_scripts_may_depend_on() -> None:
    assert [each for each in Code if not re.fullmatch(r"GE0[1-9]\d\d", each)] == []
    assert len({each.value for each in Code}) == len(Code)
