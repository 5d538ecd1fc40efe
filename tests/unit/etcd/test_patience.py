"""How long a read may take: whatever happens, a silence ends, and only one whose reply is owed ends the stream."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd.patience import Patience
from grpc_etcd.etcd.renewing import ANSWER_SECONDS

seconds = st.floats(0.1, 200.0)


@given(seconds, seconds)
def test_nothing_is_due_while_nobody_reads(progress: float, now: float) -> None:
    patience = Patience(progress)
    assert patience.left(now) > 0
    patience.begin(now)
    patience.end(replied=False)
    assert patience.left(now + 1000) > 0, "else its guard would never pause"


@given(seconds, seconds)
def test_an_opening_that_is_not_answered_is_given_up(progress: float, now: float) -> None:
    patience = Patience(progress)
    patience.begin(now)
    assert patience.is_owed
    assert patience.left(now + ANSWER_SECONDS / 2) > 0
    assert patience.left(now + ANSWER_SECONDS + 0.01) == 0


@given(seconds, seconds)
def test_a_silence_is_questioned_and_given_up_only_where_something_is_owed(progress: float, now: float) -> None:
    patience = Patience(progress)
    patience.begin(now)
    patience.end(replied=True)
    since = now + 1
    patience.begin(since)
    late = since + progress + 0.01
    assert (patience.left(late), patience.is_owed) == (0, False)
    patience.note_asked(late)
    assert patience.left(late) > 0, "it has just been asked"
    patience.owe(since)
    assert patience.is_owed
    assert patience.left(late + ANSWER_SECONDS + 0.01) == 0
    patience.end(replied=True)
    patience.begin(late + 1)
    assert not patience.is_owed, "a new read owes nothing"
