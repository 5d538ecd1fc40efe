"""Complete `kubectl grpc-etcd ...`: kubectl runs `kubectl_complete-grpc_etcd` with the words that are typed so far.

It reads what cobra prints: a line for each choice, with a tab before its description, and a last one that says whether
the shell offers files too.
"""

import sys

import click
from click.shell_completion import ShellComplete

from grpc_etcd.cli.commands import PROGRAM, cli

FILES, NO_FILES = ":0", ":4"  # cobra's ShellCompDirectiveDefault and ShellCompDirectiveNoFileComp


def complete_plugin() -> None:
    """Print how the last argument of this process may go on."""
    *words, incomplete = sys.argv[1:] or [""]
    found = ShellComplete(cli, {}, PROGRAM, "").get_completions(words, incomplete)
    plain = [each for each in found if each.type == "plain"]
    for each in plain:
        click.echo(_format(each.value, each.help))
    click.echo(NO_FILES if len(plain) == len(found) else FILES)


def _format(choice: str, text: str | None) -> str:
    description = " ".join((text or "").split())
    return f"{choice}\t{description}" if description else choice
