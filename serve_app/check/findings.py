"""What a check finds, and where."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

Path = tuple[str | int, ...]
"""Keys and indices from the top of the config."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (``error``) or seldom meant (``warning``) at a place of the config."""

    severity: Literal["error", "warning"]
    path: Path
    message: str


def error(path: Path, message: str) -> Finding:
    """A finding that stops a server, or makes it do what nobody wants."""
    return Finding("error", path, message)


def warning(path: Path, message: str) -> Finding:
    """A finding that may be meant."""
    return Finding("warning", path, message)


def path_text(path: Path) -> str:
    """``applications[0].args.models``; the empty path is the whole config."""
    return re.sub(r"\.(\[)", r"\1", ".".join(f"[{p}]" if isinstance(p, int) else p for p in path)) or "config"


def unknown(name: Any, known: Collection[str]) -> str:
    """That a name is unknown, with the one that was probably meant or else all there are."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"unknown name {name!r}; " + (
        f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
    )


def validation_errors(errors: ValidationError, content: Any, base: Path) -> list[Finding]:
    """A model's errors at the places of ``content`` they are about; ``base`` is where that content is."""
    findings = []
    for found in errors.errors(include_url=False):
        path = base + _existing(found["loc"], content)
        if found["type"] == "missing":
            path = (*path, found["loc"][-1])
        findings.append(error(path, found["msg"].removeprefix("Value error, ")))
    return findings


def _existing(where: tuple[int | str, ...], content: Any) -> Path:
    """``where`` without the names of alternatives, which are no keys of the content."""
    kept: list[int | str] = []
    for step in where:
        if isinstance(content, dict | list):
            try:
                content = content[step]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                continue
            kept.append(step)
    return tuple(kept)
