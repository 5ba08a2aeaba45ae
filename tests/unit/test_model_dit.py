"""The DiT against golden numbers, and what batching must not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compare import deviation
from torch import Tensor

from serve_app.model.checkpoint import load_dit
from serve_app.model.dit import AudioContext, DiT
from serve_app.model.presets import preset

Golden = dict[str, Tensor]
TIMESTEPS = (1000.0, 937.5, 833.3333129882812, 625.0)
CPU = torch.device("cpu")


@pytest.fixture(params=["lite", "pro"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def numbers(golden_tensors: Any, name: str) -> Golden:
    tensors: Golden = golden_tensors(f"dit_{name}")
    return tensors


@pytest.fixture
def dit(golden: Path, name: str) -> DiT:
    return load_dit(golden / "ckpt", preset(name), CPU, torch.float32)


@pytest.mark.parametrize("step", range(4))
def test_output_at_every_timestep(dit: DiT, numbers: Golden, step: int) -> None:
    context = dit.project_audio(numbers["audio_windows"])
    out = dit(numbers["x"], numbers["y"], torch.tensor([TIMESTEPS[step]]), context)
    assert deviation(out, numbers[f"out_t{step}"]) <= 1e-5


def test_intermediates(dit: DiT, numbers: Golden) -> None:
    taps: Golden = {}
    modules = {
        "patch_embedding": dit.patch_embedding,
        "time_embedding": dit.time_embedding,
        "time_projection": dit.time_projection,
        "audio_context": dit.audio_proj,
        "block0_self_attn": dit.blocks[0].self_attn,
        "block0_cross_attn": dit.blocks[0].cross_attn,
        "block0": dit.blocks[0],
        "head": dit.head,
    }
    for tap, module in modules.items():
        module.register_forward_hook(lambda _module, _args, out, tap=tap: taps.update({tap: out}))
    context = dit.project_audio(numbers["audio_windows"])
    dit(numbers["x"], numbers["y"], torch.tensor([937.5]), context)
    expected = {key.removeprefix("tap_t1."): value for key, value in numbers.items() if "tap" in key}
    assert taps.keys() == expected.keys()
    for tap, value in expected.items():
        assert deviation(taps[tap].reshape(value.shape), value) <= 1e-5, tap


def test_bfloat16_with_the_timestep_the_released_inference_feeds(
    golden: Path, numbers: Golden, name: str
) -> None:
    dit = load_dit(golden / "ckpt", preset(name), CPU, torch.bfloat16)
    x, y, windows = (numbers[key].bfloat16() for key in ("x", "y", "audio_windows"))
    out = dit(x, y, torch.tensor([936.0]), dit.project_audio(windows))
    assert out.dtype == torch.bfloat16
    assert deviation(out, numbers["out_t1_bf16"]) <= 3e-2


def test_rounding_of_the_timestep_is_left_to_the_sampler(golden: Path, numbers: Golden, name: str) -> None:
    dit = load_dit(golden / "ckpt", preset(name), CPU, torch.bfloat16)
    x, y, windows = (numbers[key].bfloat16() for key in ("x", "y", "audio_windows"))
    context = dit.project_audio(windows)
    exact, rounded = (dit(x, y, torch.tensor([t]), context) for t in (937.5, 936.0))
    assert not torch.equal(exact, rounded)


def test_a_row_in_a_batch_equals_the_row_alone(dit: DiT, numbers: Golden) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (4, *numbers["x"].shape[1:])
    x, y = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    windows = torch.randn(4, *numbers["audio_windows"].shape[1:], generator=generator)
    t = torch.tensor(TIMESTEPS)
    alone = [dit.project_audio(windows[row : row + 1]) for row in range(4)]
    together = dit(x, y, t, AudioContext.cat(alone))
    for row, context in enumerate(alone):
        one = slice(row, row + 1)
        assert deviation(together[one], dit(x[one], y[one], t[one], context)) <= 1e-5


def test_contexts_are_joined_and_taken_apart_by_row(dit: DiT, numbers: Golden) -> None:
    first = dit.project_audio(numbers["audio_windows"])
    second = dit.project_audio(numbers["audio_windows"].flip(1))
    joined = AudioContext.cat([first, second])
    assert joined.batch == 2
    assert torch.equal(joined.rows(slice(1, 2)).keys, second.keys)
    assert torch.equal(joined.rows(slice(0, 1)).values, first.values)
    assert AudioContext.cat([first]) is first


def test_audio_of_a_latent_frame_is_seen_by_its_tokens_alone(dit: DiT, numbers: Golden) -> None:
    """One cross-attention, so that self-attention does not spread the change."""
    layer = dit.blocks[0].cross_attn
    tokens = dit.audio_proj(numbers["audio_windows"])
    changed = tokens.clone()
    changed[:, 2] += 1
    frames = tokens.shape[1]
    h = torch.randn(1, frames * 6, dit.config.dim, generator=torch.Generator().manual_seed(2))
    before = layer(h, *layer.key_value(tokens)).unflatten(1, (frames, -1))
    after = layer(h, *layer.key_value(changed)).unflatten(1, (frames, -1))
    differs = (before != after).flatten(2).any(dim=2).squeeze(0)
    assert differs.nonzero().flatten().tolist() == [2]


def test_forward_is_one_graph(dit: DiT, numbers: Golden) -> None:
    """No data-dependent branch, no value fetched from the device: it compiles whole."""
    context = dit.project_audio(numbers["audio_windows"])
    arguments = (numbers["x"], numbers["y"], torch.tensor([625.0]), context)
    compiled = torch.compile(dit, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), dit(*arguments))
    torch.compiler.reset()
