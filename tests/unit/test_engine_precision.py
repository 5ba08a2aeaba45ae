"""Device, dtype and kernel choices."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from engines import CHECKPOINT, engine, features_of, spec, speech, stream_calls

from serve_app.config import ModelSettings
from serve_app.engine import precision
from serve_app.engine.engine import Engine
from serve_app.engine.noise import GeneratorNoise, NoiseStreams
from serve_app.engine.precision import choose_device, choose_dtype, choose_execution, compile_blocks
from serve_app.errors import OutOfRange


def test_the_cpu_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (2, "cuda:0")])
def test_auto_takes_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, count: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert choose_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:2", "gpu", "mps", ""])
def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if name == "cuda:2" else 0)
    with pytest.raises(OutOfRange, match="cannot be used here; accepted: auto, cpu") as refusal:
        choose_device(name)
    assert refusal.value.value == name


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert choose_dtype("auto", cpu)[0] == torch.float32
    assert choose_dtype("bf16", cpu)[0] == torch.bfloat16
    assert choose_dtype("fp32", gpu)[0] == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert choose_dtype("auto", gpu)[0] == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_dtype("auto", gpu)[0] == torch.float32
    with pytest.raises(OutOfRange, match=r"compute capability 8\.0"):
        choose_dtype("bf16", gpu)


def test_the_choice_is_logged_with_its_reasons(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=precision.__name__):
        choose_execution(ModelSettings(name="lite", device="cpu", precision="bf16"))
    [message] = caplog.messages
    assert "lite on cpu" in message
    assert "bf16: as configured" in message
    assert "SDPA: flash-attn needs a CUDA device" in message


def test_an_engine_from_settings() -> None:
    settings = ModelSettings(name="pro", checkpoint=str(CHECKPOINT), device="cpu", max_rows=2, threads=2)
    before = torch.get_num_threads()
    try:
        loaded = Engine.load(settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert loaded.card.name == "pro"
    assert not loaded.card.reproducible
    assert loaded.card.geometry.height == 512


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_bf16_is_the_same_picture_rounded(name: str) -> None:
    """Latents are drawn in bfloat16, so both runs are given the same ones."""
    exact, rounded = (video(name, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert torch.isfinite(rounded).all()
    error = (rounded - exact).square().mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.1


def video(name: str, dtype: torch.dtype) -> torch.Tensor:
    """A chunk's frames before quantisation, from noise drawn in float32."""
    machine = engine(name, noise=CastNoise(dtype), dtype=dtype)
    [call] = stream_calls(speech(20), machine.geometry)
    state, reference = machine.open(spec(name))
    row = machine.begin(state, reference, features_of(state, call, machine.geometry), call)
    while row.steps_left:
        machine.denoise([row])
    machine.decode(row)
    assert row.x.dtype == dtype
    assert row.video is not None
    assert row.video.dtype == torch.float32
    return row.video


class CastNoise:
    """Noise drawn in float32 and rounded to the run's dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._source = GeneratorNoise(torch.device("cpu"), torch.float32)
        self._dtype = dtype

    def seeded(self, seed: int) -> NoiseStreams:
        return CastStreams(self._source.seeded(seed), self._dtype)

    def resumed(self, latent: torch.Tensor, posterior: torch.Tensor) -> NoiseStreams:
        return CastStreams(self._source.resumed(latent, posterior), self._dtype)


class CastStreams:
    def __init__(self, streams: NoiseStreams, dtype: torch.dtype) -> None:
        self._streams = streams
        self._dtype = dtype

    def latent(self, shape: Sequence[int]) -> torch.Tensor:
        return self._streams.latent(shape).to(self._dtype)

    def posterior(self, shape: Sequence[int]) -> torch.Tensor:
        return self._streams.posterior(shape)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._streams.states()


def test_compiled_blocks_are_the_dits_own() -> None:
    compiled = []

    class Block:
        def compile(self, **options: bool) -> None:
            compiled.append(options)

    class Dit:
        blocks = (Block(), Block())

    compile_blocks(Dit())
    assert compiled == [{"fullgraph": True, "dynamic": False}] * 2
