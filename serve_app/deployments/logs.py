"""The project's log lines among Serve's: same files, level and encoding, as the config's
``logging_config`` says."""

from __future__ import annotations

import logging


def join_serve_logging() -> None:
    """Let the logger ``serve_app`` and all below it hand their records to Serve's logger.

    Called first in every deployment's constructor, by when Serve has set its logger up.
    """
    logging.getLogger("serve_app").parent = logging.getLogger("ray.serve")
