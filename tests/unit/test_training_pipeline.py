"""The whole of training, in miniature: stopped and taken up again it gives the same checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from serve_app.model.weight_report import check_weights

from media.programs import needs
from training.loop import Run
from training.stages import Length, Scale, Workplace
from training.train import PHASES, work

pytestmark = [pytest.mark.slow, needs("espeak-ng")]

MINIATURE = Scale(
    clips=4,
    speech=Length(4, 2),
    talks=20,
    generator=Length(5, 4),
    rollouts=3,
    correction=Length(3, 4),
)
FOREVER = float("inf")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def place(folder: Path) -> Workplace:
    return Workplace(folder, torch.device("cpu"), 1, MINIATURE)


def files(checkpoint: Path) -> dict[str, bytes]:
    """Weights and configurations; the record holds times."""
    return {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name != "training.json"
    }


def test_stopped_training_gives_the_checkpoint_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert work(place(tmp_path / "whole"), list(PHASES), FOREVER)
    whole = tmp_path / "whole" / "checkpoint"
    assert check_weights(whole).of(["tiny"]).complete
    record = json.loads((whole / "training.json").read_text())
    assert list(record["phases"]) == list(PHASES)[:-1]
    assert {name: stage["step"] for name, stage in record["stages"].items()} == {
        "speech": 4,
        "generator": 5,
        "correction": 3,
    }
    assert -1 <= record["held out"]["opening_heard"] <= 1

    take_a_step, steps = Run._step, []

    def interrupted(run: Run, batch: object) -> dict[str, float]:
        if len(steps) % 3 == 2:
            steps.append(None)
            raise KeyboardInterrupt
        steps.append(None)
        terms = take_a_step(run, batch)
        run.save()
        return terms

    monkeypatch.setattr(Run, "_step", interrupted)
    pieces = 0
    done = False
    while not done:
        pieces += 1
        assert pieces < 50
        try:
            done = work(place(tmp_path / "parts"), list(PHASES), time.monotonic() + 4 * pieces)
        except KeyboardInterrupt:
            continue
    assert pieces > 5
    assert files(tmp_path / "parts" / "checkpoint") == files(whole)


def test_a_folder_is_for_one_scale(tmp_path: Path) -> None:
    assert work(place(tmp_path), [], FOREVER)
    other = Scale(4, Length(4, 2), 20, Length(6, 4), 3, Length(3, 4))
    with pytest.raises(SystemExit, match="give another --work"):
        work(Workplace(tmp_path, torch.device("cpu"), 1, other), [], FOREVER)


def test_unfinished_talks_are_not_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "talks").mkdir()
    with pytest.raises(FileNotFoundError, match="2 shards of 20 talks"):
        work(place(tmp_path), ["generator"], FOREVER)
