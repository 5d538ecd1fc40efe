"""Who delivers Pods in a test: what concerns how they come is held with both, by long tests in turns.

Such a test's id says with whom it ran; POD_WATCH=kopf repeats that, and runs with Kopf whatever else there is.
"""

import os
import random

import pytest

WAYS = ("direct", "kopf")
with_both = pytest.mark.parametrize("pod_watch", WAYS, indirect=True)


def with_one() -> pytest.MarkDecorator:
    """Let one of both deliver, another one from run to run."""
    way = os.environ.get("POD_WATCH") or random.choice(WAYS)  # noqa: S311  no secret
    return pytest.mark.parametrize("pod_watch", [way], indirect=True)
