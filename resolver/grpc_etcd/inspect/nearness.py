"""What may have been meant: labels, port names and fields that come near to those that match nothing. Pure."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from grpc_etcd.inspect.cluster import PodFacts

MOST_SHOWN = 3  # arbitrary
MOST_EDITS = 2  # arbitrary: of a word that is LONG; one of a shorter one
LONG = 6


def near_labels(key: str, value: str, pods: Sequence[PodFacts]) -> list[tuple[str, str]]:
    """Return labels of Pods that a label may have been meant as, the nearest first: the same key, or the same value."""
    labels = Counter(pair for pod in pods for pair in pod.labels.items())
    values = {pair[1]: pair for pair in labels if pair[0] == key}
    same_key = [values[each] for each in difflib.get_close_matches(value, values, MOST_SHOWN)]
    keys = {pair[0]: pair for pair in labels if pair[1] == value}
    same_value = [keys[each] for each in difflib.get_close_matches(key, keys, MOST_SHOWN, cutoff=0.0)]
    return list(dict.fromkeys((*same_key, *same_value)))[:MOST_SHOWN]


def common_labels(pods: Sequence[PodFacts]) -> list[str]:
    """Return the labels that most Pods have, written as kubectl does; a hash of a template helps nobody."""
    labels = Counter(pair for pod in pods for pair in pod.labels.items() if not pair[0].endswith("template-hash"))
    return [write_label(*pair) for pair, _ in labels.most_common(MOST_SHOWN)]


def near_names(name: str, names: Iterable[str], *, is_near: bool = False) -> list[str]:
    """Return the names that come nearest, in the order of nearness; else some, unless they are to be near."""
    known = list(dict.fromkeys(each for each in names if each))
    return difflib.get_close_matches(name, known, MOST_SHOWN, cutoff=0.5) or ([] if is_near else known[:MOST_SHOWN])


def is_misspelling(one: str, other: str) -> bool:
    """Return whether two words differ as a typing mistake does; those that differ in a digit are two on purpose."""
    if [each for each in one if each.isdigit()] != [each for each in other if each.isdigit()]:
        return False
    return one != other and count_edits(one, other) <= (MOST_EDITS if min(len(one), len(other)) >= LONG else 1)


def count_edits(one: str, other: str) -> int:
    """Count what has to be inserted, deleted, replaced or exchanged with its neighbour to make one word the other."""
    rows = [list(range(len(other) + 1))]
    for row, letter in enumerate(one, 1):
        now, last = [row], rows[-1]
        for column, wanted in enumerate(other, 1):
            cost = min(last[column] + 1, now[-1] + 1, last[column - 1] + (letter != wanted))
            if row > 1 < column and (letter, wanted) == (other[column - 2], one[row - 2]):
                cost = min(cost, rows[-2][column - 2] + 1)
            now.append(cost)
        rows.append(now)
    return rows[-1][-1]


def write_label(key: str, value: str) -> str:
    """Write a label as kubectl takes it."""
    return f"{key}={value}"


def unmatched_labels(wanted: Mapping[str, str], pods: Sequence[PodFacts]) -> dict[str, str]:
    """Return those of some labels that no Pod has."""
    present = {pair for pod in pods for pair in pod.labels.items()}
    return {key: value for key, value in wanted.items() if (key, value) not in present}
