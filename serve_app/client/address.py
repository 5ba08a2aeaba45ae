"""Where a Serve config listens, and whether others than this machine reach it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import Any

APPLICATION = "serve_app.app:build_app"
"""The ``import_path`` of this project's application."""
SERVE_HOST, SERVE_PORT = "0.0.0.0", 8000
"""Where Serve listens if a config does not say."""


def address(config: Mapping[str, Any]) -> tuple[str, str]:
    """Host and port of a Serve config."""
    http = config.get("http_options")
    given = http if isinstance(http, Mapping) else {}
    return str(given.get("host", SERVE_HOST)), str(given.get("port", SERVE_PORT))


def is_public(host: str) -> bool:
    """Whether a server that listens on ``host`` is reached from other machines. Serve's HAProxy listens on
    all addresses whatever the config says."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1":
        return True
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def local_url(host: str, port: str) -> str:
    """The URL on this machine of a server that listens there."""
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{port}"
