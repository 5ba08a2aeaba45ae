"""A YAML text, and the line of everything in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from serve_app.check.findings import Finding, Path, error


@dataclass(frozen=True)
class Document:
    """A parsed config.

    Attributes:
        content: what YAML says; None where it cannot be read.
        lines: the line of each key and list item, from 1.
        findings: syntax errors and keys given twice.
    """

    content: Any
    lines: dict[Path, int]
    findings: tuple[Finding, ...] = ()

    def line(self, path: Path) -> int:
        """The line of a place, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(text: str) -> Document:
    """Read a config as Serve does, keeping what Serve forgets."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as broken:
        mark = broken.problem_mark or broken.context_mark
        where: dict[Path, int] = {(): mark.line + 1} if mark is not None else {}
        return Document(None, where, (error((), f"not YAML: {broken.problem}"),))
    except (yaml.YAMLError, ValueError) as broken:
        return Document(None, {}, (error((), f"not YAML: {broken}"),))
    lines: dict[Path, int] = {}
    twice: list[Finding] = []
    for path, line in _places(node, (), ()) if node is not None else ():
        if path in lines and isinstance(path[-1], str):
            twice.append(error(path, f"given twice; here and in line {lines[path]}"))
        lines[path] = line
    return Document(content, lines, tuple(twice))


def _places(node: yaml.Node, path: Path, within: tuple[yaml.Node, ...]) -> Iterator[tuple[Path, int]]:
    """Every key and item with its line. ``within`` ends the walk of a structure that holds itself."""
    if any(node is outer for outer in within):
        return
    inner: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inner = [(str(key.value), key, value) for key, value in node.value if key.value != "<<"]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(index, item, item) for index, item in enumerate(node.value)]
    for step, marked, value in inner:
        yield (*path, step), marked.start_mark.line + 1
        yield from _places(value, (*path, step), (*within, node))
