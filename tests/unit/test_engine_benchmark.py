"""The engine's benchmark, and what it counts: a chunk costs what the model costs, nothing twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve_app.model.presets import preset

from benchmarks import engine as engine_benchmark
from benchmarks.networks import count_tflop

EXPECTED = {
    # TFLOP of the DiT forward with its audio context, VAE decode of 33 frames, motion encode, 8 s of speech.
    "lite": (3.558, 7.71, 2.10, 0.077),
    "pro": (38.85, 73.9, 7.04, 0.077),
}


def closed_form(tokens: int, dim: int = 1536, ffn: int = 8960, layers: int = 30) -> float:
    """TFLOP of the blocks of one forward: projections and feed-forward per token, attention between
    tokens; the audio side of cross-attention is not in it."""
    per_token = 2 * (6 * dim * dim + 2 * dim * ffn) + 4 * tokens * dim + 4 * 32 * dim
    return layers * tokens * per_token / 1e12


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_work_of_a_chunk(name: str) -> None:
    work = count_tflop(preset(name))
    forward, decode, advance, audio = EXPECTED[name]
    assert work.begin + work.denoise == pytest.approx(forward, rel=2e-3)
    assert work.decode == pytest.approx(decode, rel=2e-3)
    assert work.advance == pytest.approx(advance, rel=3e-3)
    assert work.audio == pytest.approx(audio, rel=1e-2)


@pytest.mark.parametrize(("name", "tokens"), [("lite", 5 * 16 * 16), ("pro", 9 * 32 * 32)])
def test_a_step_is_its_blocks(name: str, tokens: int) -> None:
    """Patch embedding and head are the rest."""
    assert count_tflop(preset(name)).denoise == pytest.approx(closed_form(tokens), rel=1e-3)


def test_the_benchmark_prints_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "benchmarks/engine.py --chunks 1 --rows 2 --device cpu"
    monkeypatch.setattr(sys, "argv", command.split())
    engine_benchmark.main()
    printed = capsys.readouterr().out
    assert "### tiny, 2 row(s), cpu" in printed
    assert f"`python {command}`" in printed
    stages = ("audio features", "DiT step (x4)", "VAE decode", "motion encode", "delivered frames per second")
    assert all(f"| {stage}" in printed for stage in stages)
