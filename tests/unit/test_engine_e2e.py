"""Three chunks from portrait and speech to frames, held to the golden numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import RecordedNoise, engine, features_of, golden_preset, spec, stream_calls
from torch import Tensor

from serve_app.engine.colour import reference_statistics
from serve_app.engine.engine import Engine
from serve_app.engine.noise import GeneratorNoise
from serve_app.engine.row import ChunkRow
from serve_app.engine.yuv import to_uint8, yuv420p
from serve_app.types import ChunkCall, SessionSpec

CHUNKS = 3
DRAWS = 5
MODELS = ("lite", "pro")


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a fraction of the largest value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


class GoldenRun:
    """The golden session played by our engine on the recorded noise; every chunk's row and state."""

    def __init__(self, name: str, golden: dict[str, Tensor]) -> None:
        self.golden = golden
        self.spec = self._spec(name)
        self.engine = engine(name, noise=self._noise())
        self.rows: list[ChunkRow] = []
        self.yuv: list[np.ndarray] = []
        state, self.reference = self.engine.open(self.spec)
        self.states = [state]
        for call in self._calls(self.engine):
            self._play(call)

    def _spec(self, name: str) -> SessionSpec:
        pixels = ((self.golden["ref_image"][0, :, 0] / 2 + 0.5) * 255).round().to(torch.uint8)
        return spec(name, portrait=pixels.permute(1, 2, 0).numpy())

    def _noise(self) -> RecordedNoise:
        latent = [draw for chunk in range(CHUNKS) for draw in self.golden[f"chunk{chunk}.noise"]]
        names = ["ref_posterior_noise", *(f"chunk{chunk}.posterior_noise" for chunk in range(CHUNKS))]
        return RecordedNoise(latent, [self.golden[name] for name in names if name in self.golden])

    def _calls(self, engine: Engine) -> list[ChunkCall]:
        """The golden run pads its speech to whole chunks and advances after the last one too."""
        padded = np.zeros(CHUNKS * engine.geometry.slice_samples, np.float32)
        pcm = self.golden["pcm"].numpy() / 32768
        padded[: len(pcm)] = pcm
        return [replace(call, final=False) for call in stream_calls(padded, engine.geometry)]

    def _play(self, call: ChunkCall) -> None:
        state = self.states[-1]
        features = features_of(state, call, self.engine.geometry)
        row = self.engine.begin(state, self.reference, features, call)
        while row.steps_left:
            self.engine.denoise([row])
        self.yuv.append(self.engine.decode(row))
        self.rows.append(row)
        self.states.append(self.engine.advance(row))


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, golden_tensors) -> GoldenRun:
    return GoldenRun(request.param, golden_tensors(f"e2e_{request.param}"))


def test_reference_latent(run: GoldenRun) -> None:
    assert deviation(run.reference.latent[0], run.golden["ref_latent"]) <= 1e-4


def test_audio_windows(run: GoldenRun) -> None:
    call = run.rows[0].call
    features = features_of(run.states[0], call, run.engine.geometry)
    windows = run.engine._windows(features, call.audio, first_row=200 - len(features))
    assert deviation(windows, run.golden["chunk0.audio_windows"]) <= 1e-3


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_latents(run: GoldenRun, chunk: int) -> None:
    motion_in, motion_out = run.states[chunk].motion, run.states[chunk + 1].motion
    assert deviation(motion_in, run.golden[f"chunk{chunk}.motion_in"]) <= 1e-3
    assert deviation(run.rows[chunk].x[0], run.golden[f"chunk{chunk}.final_latent"]) <= 1e-3
    assert deviation(motion_out, run.golden[f"chunk{chunk}.motion_out"]) <= 1e-3


def test_decoded_frame_before_colour(run: GoldenRun) -> None:
    decoded = run.engine._vae.decode(run.rows[0].x)
    assert deviation(decoded[:, :, 0], run.golden["chunk0.decoded_frame0"]) <= 1e-3


def test_last_frame_before_quantisation(run: GoldenRun) -> None:
    video = run.rows[0].video
    assert video is not None
    last = ((video[0, :, -1] + 1) / 2 * 255).permute(1, 2, 0)
    assert deviation(last, run.golden["chunk0.frames_f32_last"]) <= 1e-3


def test_frames(run: GoldenRun) -> None:
    """At most one level apart, on at most 0.1 % of the values: rounding for truncation would fail."""
    videos = [row.video[:, :, -row.call.frame_count :] for row in run.rows if row.video is not None]
    found = torch.cat([to_uint8(video, "truncate") for video in videos]).permute(0, 2, 3, 1)
    expected = run.golden["frames_u8"]
    assert found.shape == expected.shape
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 1e-3


def test_frames_leave_as_yuv420p_of_the_same_pixels(run: GoldenRun) -> None:
    for row, yuv in zip(run.rows, run.yuv, strict=True):
        assert row.video is not None
        rgb = to_uint8(row.video[:, :, -row.call.frame_count :], "truncate")
        assert np.array_equal(yuv, yuv420p(rgb).numpy())


def test_seed_42_on_the_cpu_draws_the_golden_noise(run: GoldenRun) -> None:
    streams = GeneratorNoise(torch.device("cpu"), torch.float32).seeded(42)
    for chunk in range(CHUNKS):
        for draw in run.golden[f"chunk{chunk}.noise"]:
            assert torch.equal(streams.latent(draw.shape), draw)


def test_colour_reference_is_the_portrait(run: GoldenRun) -> None:
    expected = reference_statistics(run.golden["ref_image"][0, :, 0])
    assert deviation(run.reference.colour.mean, expected.mean) <= 1e-5
    assert deviation(run.reference.colour.std, expected.std) <= 1e-5


def test_golden_models_do_not_round_timesteps() -> None:
    assert not any(golden_preset(name).bf16_timesteps for name in MODELS)
