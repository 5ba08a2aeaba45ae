"""Imports run one way, and each layer knows only what it may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "serve_app"

BASE = {"types", "errors", "config", "metrics", "tracing"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "config": set(),
    "metrics": set(),
    "tracing": {"metrics"},
    "model": BASE,
    "engine": BASE | {"model"},
    "media": BASE,
    "session": BASE | {"media"},
    "api": BASE | {"media", "session"},
    "deployments": BASE | {"model", "engine", "media", "session", "api"},
    "app": BASE | {"deployments"},
    "client": BASE | {"model", "engine", "media", "session", "api"},
    "check": BASE | {"model", "api", "app", "client"},
    "cli": BASE | {"client", "check", "model", "session", "api"},
}
"""What each layer may import of the package; itself always."""

FORBIDDEN = {
    "ray": BASE | {"model", "engine", "media", "session", "api", "client", "cli"},
    "torch": BASE | {"media", "session", "api", "app", "check", "cli"},
    "av": set(ALLOWED) - {"media"},
}
"""Third-party packages and the layers that must not know them."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in ALLOWED)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def layer(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    own = layer(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "serve_app" and len(parts) > 1:
            assert parts[1] == own or parts[1] in ALLOWED[own], f"{own} must not import {name}"
        assert own not in FORBIDDEN.get(parts[0], set()), f"{own} must not know {parts[0]}"


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(path) for path in modules()} == set(ALLOWED)
