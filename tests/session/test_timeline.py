"""The chunk timeline: nothing lost, nothing padded delivered, integer time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import MalformedInput
from serve_app.session.timeline import ONCE_WINDOW_FRAMES, ChunkPlan, ClipTimeline
from serve_app.types import ENCODER_CONTEXT_SAMPLES, Geometry

LITE = Geometry(512, 512, 33, 9)
PRO = Geometry(512, 512, 33, 5)
SCHEDULE = json.loads((Path(__file__).parents[1] / "golden" / "schedule.json").read_text())


def clip(samples16: int, geometry: Geometry, mode: str) -> ClipTimeline:
    pcm16 = np.linspace(-0.5, 0.5, samples16, dtype=np.float32)
    return ClipTimeline(pcm16, np.repeat(pcm16, 3), geometry, mode)


def plans(timeline: ClipTimeline) -> list[ChunkPlan]:
    return [plan for index in range(len(timeline)) if (plan := timeline.peek(index)) is not None]


@pytest.mark.parametrize("case", SCHEDULE, ids=lambda c: f"{c['model']}-{c['n_samples']}")
@pytest.mark.parametrize("mode", ["stream", "once"])
def test_chunk_counts_are_the_golden_ones(case: dict, mode: str) -> None:
    geometry = LITE if case["model"] == "lite" else PRO
    timeline = clip(case["n_samples"], geometry, mode)
    expected = case[mode]
    assert timeline.frame_count == case["audio_frames_ceil"] == expected["deliver_frames"]
    assert len(timeline) == expected["n_chunks" if mode == "stream" else "correct_chunks"]
    delivered = [plan.frame_count for plan in plans(timeline)]
    assert sum(delivered) == expected["deliver_frames"]


@pytest.mark.parametrize("mode", ["stream", "once"])
@pytest.mark.parametrize("geometry", [LITE, PRO], ids=["lite", "pro"])
@pytest.mark.parametrize("samples16", [1, 640, 15_360, 15_361, 21_120, 21_121, 100_003])
def test_every_sample_belongs_to_exactly_one_chunk(samples16: int, geometry: Geometry, mode: str) -> None:
    timeline = clip(samples16, geometry, mode)
    expected_start = 0
    heard = []
    for index, plan in enumerate(plans(timeline)):
        assert plan.index == index
        assert plan.start_ms == expected_start
        assert 1 <= plan.frame_count <= geometry.frames
        assert plan.first_frame + plan.frame_count <= geometry.frames
        assert plan.final == (index == len(timeline) - 1)
        assert plan.pcm48.shape == (ENCODER_CONTEXT_SAMPLES + 1920 * plan.frame_count,)
        chunk = plan.pcm48[ENCODER_CONTEXT_SAMPLES:]
        heard.append(chunk[: plan.valid_samples])
        assert not chunk[plan.valid_samples :].any()
        expected_start = plan.end_ms
    assert timeline.peek(len(timeline)) is None
    whole = np.repeat(np.linspace(-0.5, 0.5, samples16, dtype=np.float32), 3)
    assert np.array_equal(np.concatenate(heard), whole)


def test_stream_slices_are_the_speech_in_order() -> None:
    timeline = clip(50_000, LITE, "stream")
    speech = np.concatenate([plan.audio.samples for plan in plans(timeline)])
    assert np.array_equal(speech[:50_000], np.linspace(-0.5, 0.5, 50_000, dtype=np.float32))
    assert not speech[50_000:].any()
    assert all(plan.audio.rows is None for plan in plans(timeline))


def test_once_gives_a_short_clip_whole_and_each_chunk_its_rows() -> None:
    timeline = clip(60_000, LITE, "once")
    first = timeline.peek(0)
    assert first is not None and first.first_frame == 0 and first.frame_count == 33
    for index, plan in enumerate(plans(timeline)):
        assert len(plan.audio.samples) == len(first.audio.samples) == (33 + (len(timeline) - 1) * 24) * 640
        assert plan.audio.rows == (24 * index, 24 * index + 33)
        padded = plan.audio.samples.astype(np.float64)
        assert plan.audio.statistics == pytest.approx((padded.mean(), padded.var()))


def test_once_is_bounded_for_a_long_clip() -> None:
    timeline = clip(16_000 * 100, LITE, "once")
    whole = _padded(timeline)
    statistics = (whole.mean(dtype=np.float64), whole.var(dtype=np.float64))
    for index, plan in enumerate(plans(timeline)):
        assert plan.audio.rows is not None
        start, end = plan.audio.rows
        samples = plan.audio.samples
        assert len(samples) == ONCE_WINDOW_FRAMES * 640
        assert end - start == 33 and start >= 0 and end <= ONCE_WINDOW_FRAMES
        assert plan.audio.statistics == pytest.approx(statistics)
        expected = whole[24 * index * 640 : (24 * index + 33) * 640]
        assert np.array_equal(samples[start * 640 : end * 640], expected)


def _padded(timeline: ClipTimeline) -> np.ndarray:
    frames = 33 + (len(timeline) - 1) * 24
    whole = np.zeros(frames * 640, np.float32)
    whole[: 16_000 * 100] = np.linspace(-0.5, 0.5, 16_000 * 100, dtype=np.float32)
    return whole


def test_no_samples_is_an_error() -> None:
    with pytest.raises(MalformedInput, match="no samples"):
        clip(0, LITE, "stream")
