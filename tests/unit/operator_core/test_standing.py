"""The state table: each row of docs/architecture.md, and that there is no other."""

import itertools
import re
from pathlib import Path

import pytest

from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.standing import Complaint, Lead, Sight, Standing, Store, find_unready, judge

YES, NO = True, False
SEEING, BLIND, INCOMPLETE = Sight.SEEING, Sight.BLIND, Sight.INCOMPLETE
UNREACHABLE, RELISTING, LISTED = Store.UNREACHABLE, Store.RELISTING, Store.LISTED
LEADING, STANDBY, VACANT = Lead.LEADING, Lead.STANDBY, Lead.VACANT
INSTALLATION, CLUSTER = Lead.OTHER_INSTALLATION, Lead.OTHER_CLUSTER
NOT_SEEING = (INCOMPLETE, BLIND)

# Kubernetes, etcd, leadership -> synced key, ready, reason of Programmed=False. The first row that fits counts.
ROWS = [
    (tuple(Sight), tuple(Store), (CLUSTER,), NO, NO, Reason.FOREIGN_LEADER),
    (tuple(Sight), (UNREACHABLE,), tuple(Lead), NO, NO, Reason.REGISTRY_UNAVAILABLE),
    (tuple(Sight), (RELISTING, LISTED), (VACANT,), NO, NO, Reason.NO_LEADER),
    ((SEEING,), (LISTED,), (INSTALLATION,), NO, YES, Reason.FOREIGN_LEADER),
    (tuple(Sight), (RELISTING, LISTED), (INSTALLATION,), NO, NO, Reason.FOREIGN_LEADER),
    (tuple(Sight), (RELISTING,), (LEADING, STANDBY), NO, NO, None),
    (NOT_SEEING, (LISTED,), (LEADING, STANDBY), NO, NO, None),
    ((SEEING,), (LISTED,), (LEADING,), YES, YES, None),
    ((SEEING,), (LISTED,), (STANDBY,), NO, YES, None),
]


@pytest.mark.parametrize("row", ROWS)
def test_each_row_says_what_is_told(
    row: tuple[tuple[Sight, ...], tuple[Store, ...], tuple[Lead, ...], bool, bool, Reason | None],
) -> None:
    before = [situation for each in ROWS[: ROWS.index(row)] for situation in itertools.product(*each[:3])]
    mine = [situation for situation in itertools.product(*row[:3]) if situation not in before]
    assert mine
    for situation in mine:
        assert judge(*situation) == Standing(*row[3:]), situation


# What the page calls the situations.
SIGHTS = {"any": tuple(Sight), "current": (SEEING,), "never fully listed, or stale": NOT_SEEING}
STORES = {
    "any": tuple(Store),
    "unreachable, or it rejects the owner records or the login": (UNREACHABLE,),
    "answers": (RELISTING, LISTED),
    "being listed, for the first time or after its history changed": (RELISTING,),
    "fully listed": (LISTED,),
}
LEADS = {
    "any": tuple(Lead),
    "the cluster id belongs to another cluster": (CLUSTER,),
    "no leader for longer than a leader's TTL": (VACANT,),
    "another installation leads": (INSTALLATION,),
    "leader or standby": (LEADING, STANDBY),
    "leader": (LEADING,),
    "standby": (STANDBY,),
}


def test_the_page_has_the_same_rows() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/architecture.md").read_text()
    table = page.partition("| Kubernetes | etcd | leadership |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    found = []
    for sight, store, lead, mark, ready, programmed in cells:
        reason = re.match(r"`False`, `(\w+)`", programmed)
        written = mark.startswith("written once")
        found.append((SIGHTS[sight], STORES[store], LEADS[lead], written, ready == "yes", reason and reason[1]))
    assert found == [(*row[:5], row[5] and row[5].value) for row in ROWS]


def test_the_rows_are_all_there_is() -> None:
    covered = {situation for row in ROWS for situation in itertools.product(*row[:3])}
    assert covered == set(itertools.product(Sight, Store, Lead))


SERVED, DOWN = Standing(may_mark=YES, is_serving=YES), Standing(may_mark=NO, is_serving=NO, reason=Reason.NO_LEADER)


@pytest.mark.parametrize(
    ("sight", "leads", "standings", "words"),
    [
        (INCOMPLETE, [LEADING], [SERVED], "not all Pods"),
        (BLIND, [STANDBY], [SERVED], "no connection to Kubernetes"),
        (SEEING, [CLUSTER, LEADING], [DOWN, SERVED], "--cluster-id"),
        (SEEING, [VACANT], [DOWN], "no registry"),
        (SEEING, [VACANT, STANDBY], [DOWN, DOWN], "no registry"),
        (SEEING, [VACANT, LEADING], [DOWN, SERVED], None),
        (SEEING, [STANDBY], [SERVED], None),
    ],
)
def test_ready_means_able_to_do_its_part(
    sight: Sight, leads: list[Lead], standings: list[Standing], words: str | None
) -> None:
    fault = find_unready(sight, leads, standings)
    assert fault is None if words is None else fault is not None and words in fault


def test_a_complaint_is_a_sentence_that_knows_its_reason() -> None:
    complaint = Complaint("no replica is leader", Reason.NO_LEADER)
    assert (complaint, complaint.reason) == ("no replica is leader", Reason.NO_LEADER)
