"""What a checkpoint directory holds and what it lacks, from file headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from serve_app.model.parts import Fault, Part, dit_part, vae_part, wav2vec2_part
from serve_app.model.presets import PRESETS, Preset, preset
from serve_app.model.released_files import RELEASED_BYTES

State = Literal["complete", "missing", "truncated", "unreadable", "does not fit"]


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file: its path below the root, its bytes, and what is wrong with it (empty if nothing)."""

    path: str
    state: State
    size: int
    detail: str = ""

    def to_text(self) -> str:
        released = RELEASED_BYTES.get(self.path)
        if self.state == "missing":
            expected = f", released size {released:,} bytes" if released else ""
            return f"  missing       {self.path}{expected}"
        note = ", the released size" if self.size == released else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"  {self.state:<13} {self.path}, {self.size:,} bytes{note}{detail}"


@dataclass(frozen=True, slots=True)
class PresetReport:
    """The files one preset needs."""

    name: str
    files: tuple[FileReport, ...]
    unavailable_reason: str | None = None

    @property
    def complete(self) -> bool:
        return self.unavailable_reason is None and all(file.state == "complete" for file in self.files)

    @property
    def verdict(self) -> str:
        if self.unavailable_reason:
            return f"unavailable, {self.unavailable_reason}"
        return "complete" if self.complete else "incomplete"


@dataclass(frozen=True, slots=True)
class WeightReport:
    """A directory, preset by preset. ``wanted`` are all to be there; without them any one is enough."""

    root: Path
    presets: tuple[PresetReport, ...]
    wanted: bool = False

    @property
    def complete(self) -> bool:
        """Whether all that is wanted could be loaded."""
        complete = [preset.complete for preset in self.presets]
        return all(complete) if self.wanted else any(complete)

    def of(self, models: Sequence[str]) -> WeightReport:
        """The same about ``models``, which are all wanted.

        Raises:
            OutOfRange: a name that no preset has.
        """
        names = [preset(name).name for name in models]
        return WeightReport(self.root, tuple(row for row in self.presets if row.name in names), wanted=True)

    def to_text(self) -> str:
        """The report for people, one line per file; presets that need the same files stand together."""
        lines = [str(self.root)]
        for files, presets in groupby(self.presets, key=lambda preset: preset.files):
            lines += [f"{preset.name}: {preset.verdict}" for preset in presets]
            lines += [file.to_text() for file in files]
        return "\n".join(lines)


def check_weights(root: Path) -> WeightReport:
    """What ``root`` holds for each preset. Nothing is loaded; an absent directory holds nothing."""
    return WeightReport(root, tuple(_preset_report(root, row) for row in PRESETS.values()))


def _preset_report(root: Path, preset: Preset) -> PresetReport:
    parts = (dit_part(root, preset), vae_part(root, preset), wav2vec2_part(root, preset))
    files = tuple(report for part in parts for report in _part_reports(root, part))
    return PresetReport(preset.name, files, preset.unavailable_reason)


def _part_reports(root: Path, part: Part) -> list[FileReport]:
    faults = {fault.path: fault for fault in part.examine().faults}
    return [_file_report(root, path, faults.get(path)) for path in part.files]


def _file_report(root: Path, path: Path, fault: Fault | None) -> FileReport:
    name = path.relative_to(root).as_posix()
    size = path.stat().st_size if path.is_file() else 0
    return FileReport(name, fault.state, size, fault.detail) if fault else FileReport(name, "complete", size)
