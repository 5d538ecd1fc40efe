"""How long a read may take: whatever happens, a silence ends, and only one whose reply is owed ends the stream."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd.renewing import ANSWER_SECONDS
from grpc_etcd.etcd.stall_detector import StallDetector

seconds = st.floats(0.1, 200.0)


@given(seconds, seconds)
def test_nothing_is_due_while_nobody_reads(progress: float, now: float) -> None:
    detector = StallDetector(progress)
    assert detector.left(now) > 0
    detector.begin(now)
    detector.end(replied=False)
    assert detector.left(now + 1000) > 0, "else its guard would never pause"


@given(seconds, seconds)
def test_an_opening_that_is_not_answered_is_given_up(progress: float, now: float) -> None:
    detector = StallDetector(progress)
    detector.begin(now)
    assert detector.is_owed
    assert detector.left(now + ANSWER_SECONDS / 2) > 0
    assert detector.left(now + ANSWER_SECONDS + 0.01) == 0


@given(seconds, seconds)
def test_a_silence_is_questioned_and_given_up_only_where_something_is_owed(progress: float, now: float) -> None:
    detector = StallDetector(progress)
    detector.begin(now)
    detector.end(replied=True)
    since = now + 1
    detector.begin(since)
    late = since + progress + 0.01
    assert (detector.left(late), detector.is_owed) == (0, False)
    detector.note_asked(late)
    assert detector.left(late) > 0, "it has just been asked"
    detector.owe(since)
    assert detector.is_owed
    assert detector.left(late + ANSWER_SECONDS + 0.01) == 0
    detector.end(replied=True)
    detector.begin(late + 1)
    assert not detector.is_owed, "a new read owes nothing"
