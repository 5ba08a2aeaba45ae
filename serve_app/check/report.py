"""The whole check of a config, and its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.check.document import Document, parse
from serve_app.check.findings import Finding, Path, error, path_text
from serve_app.check.gpus import check_fit, check_shares, fewest_gpus
from serve_app.check.graph import check_graph
from serve_app.check.schema import check_schema


@dataclass(frozen=True)
class Report:
    """What was found in a config.

    Attributes:
        findings: one a place at most, in the order of the text.
        gpus: GPUs the fewest replicas need.
    """

    document: Document
    findings: tuple[Finding, ...]
    gpus: int = 0

    def fails(self, strict: bool) -> bool:
        """Whether there is an error; with ``strict`` anything at all."""
        return any(strict or finding.severity == "error" for finding in self.findings)

    def to_text(self, name: str) -> str:
        """A line for each finding, as compilers write them, and a summary."""
        lines = [
            f"{name}:{self.document.line(f.path)}: {f.severity}: {path_text(f.path)}: {f.message}"
            for f in self.findings
        ]
        errors = sum(finding.severity == "error" for finding in self.findings)
        warnings = len(self.findings) - errors
        return "\n".join(
            [*lines, f"{name}: {errors} errors, {warnings} warnings; needs {self.gpus} GPUs at least"]
        )


def check_config(text: str, gpus: int | None = None) -> Report:
    """Check a Serve config as the server will read it.

    Args:
        text: YAML, as in a file or in a RayService's ``serveConfigV2``.
        gpus: how many there are; not checked where None.
    """
    document = parse(text)
    if not isinstance(document.content, Mapping):
        no_config = error((), "not a Serve config (a mapping is expected)")
        return Report(document, document.findings or (no_config,))
    first: dict[Path, Finding] = {}
    for finding in (*document.findings, *_findings(document.content, gpus)):
        first.setdefault(finding.path, finding)
    ordered = sorted(first.values(), key=lambda finding: document.line(finding.path))
    return Report(document, tuple(ordered), fewest_gpus(document.content))


def _findings(config: Mapping[str, Any], gpus: int | None) -> Iterator[Finding]:
    yield from check_schema(config)
    yield from check_graph(config)
    yield from check_shares(config)
    if gpus is not None:
        yield from check_fit(config, gpus)
