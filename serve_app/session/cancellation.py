"""Whose cancellation it is.

``asyncio.CancelledError`` says that the running task is to end, or that what it awaits was cancelled by
somebody else. The first must go through. The second is a failed call: where it passes for the first, a task
ends without a word to who waits for what it makes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import ReplicaLost

logger = logging.getLogger(__name__)


def told_to_end() -> bool:
    """Whether the running task itself was cancelled: by its owner, or by a timeout that has run out."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def cancelled_call_is_lost() -> Iterator[None]:
    """Within, a cancellation that nobody asked of the running task is ``ReplicaLost``."""
    try:
        yield
    except asyncio.CancelledError as error:
        if told_to_end():
            raise
        logger.warning("a call was lost: it was cancelled, and not from here")
        raise ReplicaLost("the call was cancelled by what served it", code="call_cancelled") from error
