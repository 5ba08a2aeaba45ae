"""Timesteps, noise levels, the order of draws, the two solvers."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.engine.noise import GeneratorNoise, posterior_seed
from serve_app.engine.sampler import euler, guided, renoise, schedule
from serve_app.errors import OutOfRange, SnapshotError
from serve_app.model.presets import preset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def meta(golden: Path) -> dict:
    return json.loads((golden / "meta.json").read_text())


def test_fp32_timesteps(meta: dict) -> None:
    found = schedule(replace(preset("lite"), bf16_timesteps=False), 4)
    assert list(found.timesteps) == meta["lite_dit_timesteps"]
    assert found.sigmas == pytest.approx([1, 0.9375, 5 / 6, 0.625, 0], rel=1e-7)
    assert found.steps == 4


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_released_weights_see_bf16_timesteps(meta: dict, name: str) -> None:
    found = schedule(preset(name), 4)
    assert [*found.timesteps, 0.0] == meta["timesteps_bf16"]
    assert list(found.sigmas) == meta["t_over_1000_bf16"]


def test_fewer_steps() -> None:
    fp32 = replace(preset("lite"), bf16_timesteps=False)
    assert schedule(fp32, 2).sigmas == pytest.approx([1, 5 / 6, 0], rel=1e-7)
    assert schedule(fp32, 3).sigmas == pytest.approx([1, 10 / 11, 5 / 7, 0], rel=1e-7)


def test_teacher_schedule() -> None:
    found = schedule(replace(preset("pretrained"), bf16_timesteps=False), 20)
    assert found.steps == 20
    assert found.sigmas[0] == 1
    assert found.sigmas[19] == pytest.approx(0.005 / 1.004, rel=1e-6)
    assert found.sigmas[20] == 0
    assert sorted(found.sigmas, reverse=True) == list(found.sigmas)


@pytest.mark.parametrize("steps", [0, 1, 5, 20, -4])
def test_steps_the_model_does_not_offer(steps: int) -> None:
    with pytest.raises(OutOfRange, match=r"accepted: \[2, 3, 4\]") as refusal:
        schedule(preset("lite"), steps)
    assert refusal.value.value == steps
    assert refusal.value.accepted == [2, 3, 4]


class Draws:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Tensor:
        self.made += 1
        return torch.full((2,), float(self.made))


def test_renoise_goes_by_the_clean_latent() -> None:
    draws = Draws()
    x, velocity = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    found = renoise(x, velocity, 0.8, 0.25, draws)
    assert torch.allclose(found, 0.75 * (x - 0.8 * velocity) + 0.25 * 1.0)
    assert draws.made == 1


def test_the_last_noise_is_drawn_and_unused() -> None:
    draws = Draws()
    x, velocity = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert torch.equal(renoise(x, velocity, 0.8, 0.0, draws), x - 0.8 * velocity)
    assert draws.made == 1


def test_euler_draws_nothing() -> None:
    draws = Draws()
    x, velocity = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert torch.allclose(euler(x, velocity, 0.8, 0.5, draws), x - 0.3 * velocity)
    assert draws.made == 0


def test_euler_integrates_a_straight_flow_exactly() -> None:
    levels = schedule(replace(preset("pretrained"), bf16_timesteps=False), 20).sigmas
    clean, noise = torch.tensor([3.0]), torch.tensor([-1.0])
    x = noise.clone()
    for sigma, following in pairwise(levels):
        x = euler(x, noise - clean, sigma, following, Draws())
    assert torch.allclose(x, clean, atol=1e-5)


def test_guidance() -> None:
    spoken, silent = torch.tensor([1.0]), torch.tensor([0.5])
    assert guided(spoken, silent, 3.0).item() == pytest.approx(2.0)
    assert guided(spoken, silent, 1.0).item() == pytest.approx(1.0)


def test_streams_are_independent_and_resume_where_they_stood() -> None:
    source = GeneratorNoise(CPU, torch.float32)
    busy, calm = source.seeded(7), source.seeded(7)
    busy.posterior((100,))
    assert torch.equal(busy.latent((4, 5)), calm.latent((4, 5)))
    resumed = source.resumed(*busy.states())
    assert torch.equal(busy.latent((3,)), resumed.latent((3,)))
    assert torch.equal(busy.posterior((3,)), resumed.posterior((3,)))


def test_streams_differ_between_seeds_and_from_each_other() -> None:
    source = GeneratorNoise(CPU, torch.float32)
    one, other = source.seeded(0), source.seeded(1)
    draws = [one.latent((8,)), one.posterior((8,)), other.latent((8,)), other.posterior((8,))]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert 0 <= posterior_seed(2**63 - 1) < 2**63


def test_noise_comes_in_the_models_dtype() -> None:
    streams = GeneratorNoise(CPU, torch.bfloat16).seeded(0)
    assert streams.latent((20,)).dtype == torch.bfloat16
    assert streams.posterior((20,)).dtype == torch.float32


def test_states_of_another_generator_are_refused() -> None:
    source = GeneratorNoise(CPU, torch.float32)
    latent, _ = source.seeded(0).states()
    with pytest.raises(SnapshotError, match="generator state"):
        source.resumed(latent, torch.zeros(16, dtype=torch.uint8))
