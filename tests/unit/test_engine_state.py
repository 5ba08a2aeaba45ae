"""The session snapshot."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from serve_app.engine.audio_cache import empty_cache
from serve_app.engine.noise import GeneratorNoise
from serve_app.engine.state import VERSION, SessionState, spec_digest
from serve_app.errors import SnapshotError
from serve_app.types import SessionSpec

KEY = "flashhead-session"


def state(motion: tuple[int, ...] = (16, 2, 2, 1), mode: str = "stream") -> SessionState:
    noise, posterior = GeneratorNoise(torch.device("cpu"), torch.float32).seeded(3).states()
    cache = empty_cache("stream" if mode == "stream" else "once")
    return SessionState(
        model="lite",
        spec_digest="0" * 64,
        index=7,
        epoch=2,
        steps=4,
        device="cpu",
        motion=torch.randn(motion, generator=torch.Generator().manual_seed(0)),
        audio_cache=cache + np.linspace(0, 1, len(cache), dtype=np.float32),
        noise=noise,
        posterior=posterior,
    )


def taken_apart(snapshot: bytes) -> tuple[dict, dict]:
    length = int.from_bytes(snapshot[:8], "little")
    values = json.loads(json.loads(snapshot[8 : 8 + length])["__metadata__"][KEY])
    return values, load(snapshot)


def put_together(values: dict, tensors: dict) -> bytes:
    return save(tensors, {KEY: json.dumps(values)})


@pytest.mark.parametrize("mode", ["stream", "once"])
def test_round_trip_is_exact(mode: str) -> None:
    before = state(mode=mode)
    after = SessionState.from_bytes(before.to_bytes())
    for field in fields(SessionState):
        found, expected = getattr(after, field.name), getattr(before, field.name)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected)
        elif isinstance(expected, np.ndarray):
            assert np.array_equal(found, expected)
        else:
            assert found == expected
    assert after.to_bytes() == before.to_bytes()


@pytest.mark.parametrize(
    ("motion", "limit"), [((128, 2, 16, 16), 1_000_000), ((16, 2, 64, 64), 2_000_000)], ids=["lite", "pro"]
)
def test_snapshots_are_small(motion: tuple[int, ...], limit: int) -> None:
    assert len(state(motion).to_bytes()) < limit


@pytest.mark.parametrize("version", [0, VERSION + 1, "1", None])
def test_another_version(version: object) -> None:
    values, tensors = taken_apart(state().to_bytes())
    with pytest.raises(SnapshotError, match=f"version {version!r}") as refusal:
        SessionState.from_bytes(put_together({**values, "version": version}, tensors))
    assert refusal.value.accepted == VERSION


@pytest.mark.parametrize("name", ["model", "spec_digest", "index", "epoch", "steps", "device"])
def test_a_missing_value(name: str) -> None:
    values, tensors = taken_apart(state().to_bytes())
    del values[name]
    with pytest.raises(SnapshotError, match=rf"values missing \['{name}'\]"):
        SessionState.from_bytes(put_together(values, tensors))


@pytest.mark.parametrize("name", ["motion", "audio_cache", "noise", "posterior"])
def test_a_missing_tensor(name: str) -> None:
    values, tensors = taken_apart(state().to_bytes())
    del tensors[name]
    with pytest.raises(SnapshotError, match=rf"tensors missing \['{name}'\]"):
        SessionState.from_bytes(put_together(values, tensors))


def test_fields_left_over() -> None:
    values, tensors = taken_apart(state().to_bytes())
    with pytest.raises(SnapshotError, match=r"unknown \['colour'\]"):
        SessionState.from_bytes(put_together({**values, "colour": 1}, tensors))
    with pytest.raises(SnapshotError, match=r"unknown \['latent'\]"):
        SessionState.from_bytes(put_together(values, {**tensors, "latent": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("name", "value"), [("index", "7"), ("index", -1), ("index", True), ("epoch", 1.5), ("model", 3)]
)
def test_a_value_of_the_wrong_kind(name: str, value: object) -> None:
    values, tensors = taken_apart(state().to_bytes())
    with pytest.raises(SnapshotError, match=f"{name} is {value!r}"):
        SessionState.from_bytes(put_together({**values, name: value}, tensors))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("motion", torch.zeros(16, 2, 2)),
        ("motion", torch.zeros(16, 2, 2, 1, dtype=torch.float16)),
        ("audio_cache", torch.zeros(64_000)),
        ("audio_cache", torch.zeros(1, 128_000)),
        ("noise", torch.zeros(16)),
    ],
    ids=["motion rank", "motion dtype", "cache length", "cache rank", "noise dtype"],
)
def test_a_tensor_of_the_wrong_shape(name: str, tensor: torch.Tensor) -> None:
    values, tensors = taken_apart(state().to_bytes())
    with pytest.raises(SnapshotError, match=name):
        SessionState.from_bytes(put_together(values, {**tensors, name: tensor}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a snapshot at all",
        state().to_bytes()[:-1],
        state().to_bytes()[:100],
        save({"motion": torch.zeros(1)}),
        save({"motion": torch.zeros(1)}, {KEY: "[1]"}),
        save({"motion": torch.zeros(1)}, {KEY: "{"}),
    ],
    ids=["empty", "text", "cut at the end", "cut in the header", "no metadata", "a list", "no JSON"],
)
def test_what_is_no_snapshot(data: bytes) -> None:
    with pytest.raises(SnapshotError):
        SessionState.from_bytes(data)


def test_the_digest_is_of_all_that_decides_the_frames() -> None:
    portrait = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    spec = SessionSpec("a", "lite", portrait, 42, 4, "stream")
    changed = [
        replace(spec, model="pro"),
        replace(spec, portrait=portrait[::-1].copy()),
        replace(spec, portrait=portrait.reshape(4, 2, 3)),
        replace(spec, seed=43),
        replace(spec, steps=2),
        replace(spec, audio_encode="once"),
    ]
    digests = {spec_digest(one) for one in (spec, *changed)}
    assert len(digests) == 7
    assert spec_digest(replace(spec, session_id="b")) == spec_digest(spec)
