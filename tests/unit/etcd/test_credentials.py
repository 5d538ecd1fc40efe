"""How a password is found out."""

from typing import Any

import pytest

from grpc_etcd.etcd.credentials import Credentials
from grpc_etcd.etcd.errors import UnreadableFile


@pytest.mark.parametrize(
    ("given", "words"),
    [(None, "returned NoneType"), (3, "returned int"), ("\ud800", "a string that cannot be sent")],
)
def test_a_function_that_gives_no_password_is_said_to_be_at_fault(given: Any, words: str) -> None:
    """As where it raises: each log-in tries it again."""
    credentials = Credentials("user", lambda: given)
    with pytest.raises(UnreadableFile, match=words) as refusal:
        credentials.log_in()
    assert "function" in refusal.value.remedy
