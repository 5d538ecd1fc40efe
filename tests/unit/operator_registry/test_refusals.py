"""The command that gives the operator's role a right can be typed as it stands, whatever name a tenant has chosen."""

import subprocess

import pytest

from grpc_etcd.inspect import reading
from grpc_etcd.registry.endpoint import name_fault
from grpc_etcd_operator.registry import refusals

WORDS = 'etcdctl() { for each in "$@"; do printf \'%s\\n\' "$each"; done; }\n'


def typed(command: str) -> list[str]:
    """Give the words that etcdctl gets from a shell."""
    done = subprocess.run(["sh", "-c", WORDS + command], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "name",
    [
        "greeter",
        "a;echo${IFS}owned;#",
        "$(echo${IFS}owned)",
        "`echo`",
        "a|echo&",
        "it's",
        '"quoted"',
        "--endpoints=evil:2379",
        "-h",
        "~root",
        "\u4e2d",
    ],
)
def test_a_shell_takes_the_name_of_a_service_for_nothing_but_a_name(name: str) -> None:
    assert name_fault(name) is None
    prefix = f"{name}/"
    ends_options = ["--"] if name.startswith("-") else []
    expected = ["role", "grant-permission", "ROLE", "--prefix=true", "readwrite", *ends_options, prefix]
    assert typed(refusals.grant(prefix.encode())) == expected
    both = typed(reading.grant("read", prefix.encode(), b"/jupiter/").partition(": ")[2])
    assert [word for word in both if word.endswith("/")] == [prefix, "/jupiter/"]
    assert both.count("grant-permission") == 2
