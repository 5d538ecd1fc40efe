r"""Show text of others without obeying it: what a terminal, a log reader or an eye would take for something else.

Whoever may write to etcd may write terminal escapes into a zone, line breaks into a group, or marks that turn the
direction of a line around. What Python's repr() would not show as it is (control and format characters, line and
paragraph separators, surrogates, spaces other than U+0020) is written as an escape: `\x1b`, `\u202e`, `\U000e0001`.
A backslash stays one: the text is for people and is not read back. Pure.
"""

import json
import re
import shlex


def escape(text: str) -> str:
    """Return the text on one line, with everything unprintable as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def escape_bytes(text: bytes) -> str:
    """Return a key or a value as text for people; bytes that are not UTF-8 become escapes too."""
    return escape(text.decode(errors="backslashreplace"))


def escape_lines(text: str) -> str:
    """Return the text with everything unprintable as an escape, except for the line breaks between its lines."""
    return text if text.isprintable() else "\n".join(map(escape, text.split("\n")))


def escape_json(document: str) -> str:
    """Return a JSON document that means the same and holds nothing unprintable but the line breaks between its lines.

    Inside strings JSON has escaped line breaks already, so those that are left are the document's own.
    """
    return document if document.isprintable() else _UNPRINTABLE.sub(_escape_for_json, document)


def quote_argument(text: str) -> str:
    """Return the text, on one line, as the last argument of a command that people are notified to type.

    Names of services, which tenants choose, may hold what a shell would carry out, or begin as an option does.
    """
    return f"{'-- ' if text.startswith('-') else ''}{shlex.quote(escape(text))}"


_UNPRINTABLE = re.compile(r"[^\n\x20-\x7e]")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _escape_for_json(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]
