"""Speech features and their windows, against golden numbers and by their properties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import deviation
from torch import Tensor

from serve_app.errors import OutOfRange
from serve_app.model.audio_features import AudioFeatures, normalised, select_windows, window_index
from serve_app.model.checkpoint import load_audio_features
from serve_app.model.presets import preset
from serve_app.types import AudioWindow

WINDOW_SAMPLES = 128_000


@pytest.fixture(scope="module")
def features(golden: Path) -> AudioFeatures:
    return load_audio_features(golden / "ckpt", preset("lite"), torch.device("cpu"))


@pytest.fixture(scope="module")
def numbers(golden_tensors: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = golden_tensors("audio")
    return tensors


@pytest.fixture(scope="module")
def speech(numbers: dict[str, Tensor]) -> Tensor:
    return numbers["pcm"].float() / 32768


@pytest.fixture(scope="module")
def window(speech: Tensor) -> Tensor:
    """The 8 s audio cache of a young session: zeros, then all of the speech."""
    return torch.cat((torch.zeros(WINDOW_SAMPLES - len(speech)), speech))


def test_normalisation_counts_the_padding(numbers: dict[str, Tensor], window: Tensor) -> None:
    assert deviation(normalised(window)[-4000:], numbers["window_8s_normalised_tail4000"]) <= 1e-6


def test_features_of_a_padded_window(
    features: AudioFeatures, numbers: dict[str, Tensor], window: Tensor
) -> None:
    assert deviation(features.encode(window), numbers["features_8s"]) <= 1e-5


def test_features_of_a_clip(features: AudioFeatures, numbers: dict[str, Tensor], speech: Tensor) -> None:
    assert deviation(features.encode(speech), numbers["features_clip"]) <= 1e-5


def test_windows_of_a_chunk(features: AudioFeatures, numbers: dict[str, Tensor], window: Tensor) -> None:
    windows = select_windows(features.encode(window), 167, 200)
    assert deviation(windows, numbers["stream_windows"]) <= 1e-5


def test_windows_of_a_clip(features: AudioFeatures, numbers: dict[str, Tensor], speech: Tensor) -> None:
    windows = select_windows(features.encode(speech), 0, 62)
    assert deviation(windows, numbers["once_windows"]) <= 1e-5


def test_window_rows_stay_below_the_end() -> None:
    index = window_index(167, 200)
    assert index.shape == (33, 5)
    assert index[0].tolist() == [165, 166, 167, 168, 169]
    assert index[-1].tolist() == [197, 198, 199, 199, 199]
    assert window_index(0, 2).tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


def test_rows_from_the_end_on_are_not_looked_at() -> None:
    rows = torch.arange(50, dtype=torch.float32).view(50, 1, 1)
    assert torch.equal(select_windows(rows, 10, 43), select_windows(rows[:43], 10, 43))


def test_windows_of_part_of_the_rows_are_those_of_all() -> None:
    rows = torch.arange(200, dtype=torch.float32).view(200, 1, 1)
    assert torch.equal(select_windows(rows[165:], 2, 35), select_windows(rows, 167, 200))


@pytest.mark.parametrize("count", [400, 639, 640, 1279, 1280, 40_000, 128_000])
def test_one_row_per_640_samples(features: AudioFeatures, count: int) -> None:
    out = features.encode(torch.randn(count, generator=torch.Generator().manual_seed(4)))
    assert out.shape == (count // 640, 3, 24)
    assert out.dtype == torch.float32


@pytest.mark.parametrize("count", [0, 399])
def test_too_few_samples_are_refused(features: AudioFeatures, count: int) -> None:
    with pytest.raises(OutOfRange, match=f"{count} audio samples, at least 400"):
        features.encode(torch.zeros(count))


def test_silence_stays_zero_and_gives_finite_features(features: AudioFeatures) -> None:
    silence = torch.zeros(WINDOW_SAMPLES)
    assert torch.equal(normalised(silence), silence)
    assert features.encode(silence).isfinite().all()


def test_a_window_full_of_speech_hears_neither_gain_nor_offset(
    features: AudioFeatures, speech: Tensor
) -> None:
    """A cache that has wrapped: no zeros left in its statistics."""
    full = speech.repeat(4)[:WINDOW_SAMPLES]
    expected = features.encode(full)
    assert expected.shape[0] == 200
    assert deviation(features.encode(full * 0.5 + 0.1), expected) <= 1e-3


def test_statistics_of_a_whole_clip_normalise_its_part(features: AudioFeatures, speech: Tensor) -> None:
    variance, mean = torch.var_mean(speech, correction=0)
    statistics = (mean.item(), variance.item())
    part = speech[:20_000]
    assert deviation(normalised(part, statistics), normalised(speech)[:20_000]) <= 1e-6
    assert deviation(features.encode(speech, statistics), features.encode(speech)) <= 1e-5


def test_only_the_wanted_rows_are_answered(features: AudioFeatures, window: Tensor) -> None:
    rows = features.rows(AudioWindow(window.numpy(), first_row=165, end_row=200))
    assert isinstance(rows, np.ndarray)
    assert (rows.shape, rows.dtype) == ((35, 3, 24), np.float32)
    np.testing.assert_array_equal(rows, features.encode(window)[165:].numpy())


def test_samples_of_another_process_may_be_read_only(features: AudioFeatures, speech: Tensor) -> None:
    samples = speech.numpy().copy()
    samples.setflags(write=False)
    assert features.rows(AudioWindow(samples, 0, 62)).shape[0] == 62


@pytest.mark.parametrize(("first", "end"), [(-1, 5), (5, 4), (0, 63)])
def test_rows_the_samples_do_not_give_are_refused(
    features: AudioFeatures, speech: Tensor, first: int, end: int
) -> None:
    with pytest.raises(OutOfRange, match="which give 62"):
        features.rows(AudioWindow(speech.numpy(), first, end))
