"""The Temporal Audio Context Cache."""

from __future__ import annotations

import numpy as np
import pytest
from engines import speech_encoder

from serve_app.engine import audio_cache
from serve_app.errors import OutOfRange
from serve_app.types import AudioSlice, AudioWindow, Geometry

LITE = Geometry(512, 512, 33, 9)
PRO = Geometry(512, 512, 33, 5)
FRAME = 640


def ramp(samples: int, start: int = 1) -> np.ndarray:
    return np.arange(start, start + samples, dtype=np.float32)


def test_a_new_cache_is_8_s_of_silence() -> None:
    cache = audio_cache.empty_cache("stream")
    assert cache.shape == (128_000,)
    assert cache.dtype == np.float32
    assert not cache.any()
    assert audio_cache.empty_cache("once").shape == (0,)


def test_append_drops_the_oldest() -> None:
    cache = ramp(10)
    assert audio_cache.append(cache, ramp(3, 100)).tolist() == [4, 5, 6, 7, 8, 9, 10, 100, 101, 102]
    assert audio_cache.append(cache, ramp(12, 100)).tolist() == ramp(10, 102).tolist()
    assert audio_cache.append(cache, ramp(0)).tolist() == cache.tolist()
    assert cache.tolist() == ramp(10).tolist()


@pytest.mark.parametrize(("geometry", "first"), [(LITE, 165), (PRO, 165)], ids=["lite", "pro"])
def test_a_full_slice(geometry: Geometry, first: int) -> None:
    speech = ramp(geometry.slice_samples)
    window, kept = audio_cache.window(audio_cache.empty_cache("stream"), AudioSlice(speech), geometry)
    assert (window.first_row, window.end_row) == (first, 200)
    assert window.statistics is None
    assert np.array_equal(window.samples, kept)
    assert np.array_equal(kept[-len(speech) :], speech)
    assert not kept[: -len(speech)].any()


def test_the_cache_wraps_beyond_8_s() -> None:
    speech = ramp(20 * LITE.slice_samples)
    cache = audio_cache.empty_cache("stream")
    for start in range(0, len(speech), LITE.slice_samples):
        _, cache = audio_cache.window(cache, AudioSlice(speech[start : start + LITE.slice_samples]), LITE)
        heard = speech[: start + LITE.slice_samples][-128_000:]
        assert np.array_equal(cache[-len(heard) :], heard)
    assert np.array_equal(cache, speech[-128_000:])


@pytest.mark.parametrize("samples", [1, 639, 640, 641, 5 * FRAME, LITE.slice_samples - 1])
def test_padding_is_heard_and_leaves_the_cache(samples: int) -> None:
    before = ramp(128_000)
    speech = ramp(samples, 500_000)
    window, kept = audio_cache.window(before, AudioSlice(speech), LITE)
    whole = -(-samples // FRAME) * FRAME
    padding = np.zeros(LITE.slice_samples - samples, np.float32)
    assert np.array_equal(window.samples, np.concatenate([before, speech, padding])[-128_000:])
    kept_padding = np.zeros(whole - samples, np.float32)
    assert np.array_equal(kept, np.concatenate([before, speech, kept_padding])[-128_000:])


def test_a_flush_leaves_the_cache_as_if_the_stream_had_gone_on() -> None:
    speech = ramp(30 * FRAME)
    cache = audio_cache.empty_cache("stream")
    for cut in (slice(0, 24 * FRAME), slice(24 * FRAME, 27 * FRAME), slice(27 * FRAME, 30 * FRAME)):
        _, cache = audio_cache.window(cache, AudioSlice(speech[cut]), LITE)
    assert np.array_equal(cache[-len(speech) :], speech)


@pytest.mark.parametrize(("rows", "wanted"), [((0, 33), (0, 35)), ((24, 57), (22, 59)), ((27, 60), (25, 60))])
def test_once_mode_brings_its_own_rows(rows: tuple[int, int], wanted: tuple[int, int]) -> None:
    clip = ramp(60 * FRAME)
    cache = audio_cache.empty_cache("once")
    window, kept = audio_cache.window(cache, AudioSlice(clip, rows, (0.5, 2.0)), LITE)
    assert (window.first_row, window.end_row) == wanted
    assert window.statistics == (0.5, 2.0)
    assert window.samples is clip
    assert kept is cache


@pytest.mark.parametrize(
    "audio",
    [
        AudioSlice(ramp(0)),
        AudioSlice(ramp(LITE.slice_samples + 1)),
        AudioSlice(ramp(640).astype(np.float64)),
        AudioSlice(ramp(640)[None]),
        AudioSlice(ramp(640) * np.float32("nan")),
        AudioSlice(ramp(40 * FRAME), (0, 32)),
        AudioSlice(ramp(40 * FRAME), (8, 41)),
        AudioSlice(ramp(40 * FRAME), (-1, 32)),
    ],
    ids=[
        "empty",
        "long",
        "float64",
        "two dimensions",
        "not a number",
        "few rows",
        "rows past the end",
        "rows before 0",
    ],
)
def test_slices_that_do_not_fit(audio: AudioSlice) -> None:
    cache = audio_cache.empty_cache("once" if audio.rows else "stream")
    with pytest.raises(OutOfRange, match="expected"):
        audio_cache.window(cache, audio, LITE)


def test_golden_features_of_a_stream(golden_tensors) -> None:
    """The golden 8 s window is silence, then the speech: what the cache holds after two slices and a
    flush."""
    golden = golden_tensors("audio")
    pcm = (golden["pcm"].numpy() / 32768).astype(np.float32)
    cache = audio_cache.empty_cache("stream")
    for start in range(0, len(pcm), LITE.slice_samples):
        window, cache = audio_cache.window(cache, AudioSlice(pcm[start : start + LITE.slice_samples]), LITE)
    assert len(pcm) % FRAME == 320
    assert np.array_equal(cache[-len(pcm) - 320 : -320], pcm)
    heard = np.concatenate([np.zeros(128_000 - len(pcm), np.float32), pcm])
    found = speech_encoder().rows(AudioWindow(heard, window.first_row, window.end_row))
    expected = golden["features_8s"].numpy()[165:200]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
