"""Both video VAEs against golden numbers, and their one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compare import deviation
from torch import Tensor

from serve_app.errors import OutOfRange
from serve_app.model.checkpoint import load_vae
from serve_app.model.presets import preset
from serve_app.model.vae import VideoVAE

Golden = dict[str, Tensor]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ltx(golden: Path) -> VideoVAE:
    return load_vae(golden / "ckpt", preset("lite"), CPU, torch.float32)


@pytest.fixture(scope="module")
def wan(golden: Path) -> VideoVAE:
    return load_vae(golden / "ckpt", preset("pro"), CPU, torch.float32)


@pytest.fixture(scope="module", params=["ltx", "wan"])
def vae(request: pytest.FixtureRequest) -> VideoVAE:
    chosen: VideoVAE = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="module")
def lite_numbers(golden_tensors: Any) -> Golden:
    tensors: Golden = golden_tensors("vae_lite")
    return tensors


@pytest.fixture(scope="module")
def pro_numbers(golden_tensors: Any) -> Golden:
    tensors: Golden = golden_tensors("vae_pro")
    return tensors


def test_ltx_posterior(ltx: VideoVAE, lite_numbers: Golden) -> None:
    mean, std = ltx.moments(lite_numbers["video"])
    assert deviation(mean, lite_numbers["posterior_mean"]) <= 1e-4
    assert deviation(std, lite_numbers["posterior_std"]) <= 1e-4
    moments = torch.cat((mean, 2 * std.log()), dim=1)
    assert deviation(moments, lite_numbers["moments"]) <= 1e-4


def test_ltx_latents(ltx: VideoVAE, lite_numbers: Golden) -> None:
    video, noise = lite_numbers["video"], lite_numbers["posterior_noise"]
    assert ltx.needs_noise
    assert deviation(ltx.encode(video)[0], lite_numbers["encoded_mean_normalised"]) <= 1e-4
    assert deviation(ltx.encode(video, noise)[0], lite_numbers["encoded_sampled_normalised"]) <= 1e-4


def test_ltx_video(ltx: VideoVAE, lite_numbers: Golden) -> None:
    assert deviation(ltx.decode(lite_numbers["latent"][None]), lite_numbers["decoded"]) <= 1e-4


def test_wan_latents(wan: VideoVAE, pro_numbers: Golden) -> None:
    assert not wan.needs_noise
    assert deviation(wan.encode(pro_numbers["video"])[0], pro_numbers["encoded"]) <= 1e-4


def test_wan_video(wan: VideoVAE, pro_numbers: Golden) -> None:
    assert deviation(wan.decode(pro_numbers["latent"][None]), pro_numbers["decoded"]) <= 1e-4


@pytest.mark.parametrize(("preset_name", "kind"), [("lite", "ltx"), ("pro", "wan")])
def test_reference_latent_of_the_end_to_end_runs(
    request: pytest.FixtureRequest, golden_tensors: Any, preset_name: str, kind: str
) -> None:
    vae: VideoVAE = request.getfixturevalue(kind)
    numbers = golden_tensors(f"e2e_{preset_name}")
    image = numbers["ref_image"].view(1, 3, 1, *numbers["ref_image"].shape[-2:])
    noise = numbers["ref_posterior_noise"] if vae.needs_noise else None
    latent = vae.sample(*vae.reference_moments(image), noise)
    assert deviation(latent[0], numbers["ref_latent"].view(latent.shape[1:])) <= 1e-4


def test_ltx_reference_is_that_of_33_copies(ltx: VideoVAE) -> None:
    image = noise(1, 3, 1, 64, 64).tanh()
    short = ltx.reference_moments(image)
    full = ltx.moments(image.expand(-1, -1, 33, -1, -1))
    assert all(deviation(a, b) <= 1e-5 for a, b in zip(short, full, strict=True))


def test_wan_reference_is_not_constant_in_time(wan: VideoVAE) -> None:
    mean, _ = wan.reference_moments(noise(1, 3, 1, 32, 32).tanh())
    assert mean.shape == (1, 16, 9, 4, 4)
    assert not torch.allclose(mean[:, :, 0], mean[:, :, 1], atol=1e-3)


def test_latent_shapes(ltx: VideoVAE, wan: VideoVAE) -> None:
    assert ltx.latent_shape(33, 512, 512) == (16, 5, 16, 16)
    assert ltx.latent_shape(9, 64, 96) == (16, 2, 2, 3)
    assert wan.latent_shape(33, 512, 512) == (16, 9, 64, 64)
    assert wan.latent_shape(5, 32, 48) == (16, 2, 4, 6)


def test_shapes_and_precision_of_both_ways(vae: VideoVAE) -> None:
    video = noise(2, 3, 9, 64, 64).tanh()
    latent = vae.encode(video)
    assert latent.shape[1:] == vae.latent_shape(9, 64, 64)
    assert latent.dtype == torch.float32
    assert vae.decode(latent).shape == video.shape


@pytest.mark.parametrize("frames", [0, 2, 8, 10, 32])
def test_frame_counts_a_network_would_cut_are_refused(ltx: VideoVAE, frames: int) -> None:
    with pytest.raises(OutOfRange, match=f"{frames} video frames, expected 1 \\+ a multiple of 8"):
        ltx.encode(torch.zeros(1, 3, frames, 32, 32))


def test_frame_count_of_the_other_family_is_refused(wan: VideoVAE) -> None:
    with pytest.raises(OutOfRange, match=r"7 video frames, expected 1 \+ a multiple of 4"):
        wan.encode(torch.zeros(1, 3, 7, 32, 32))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (0, 32)])
def test_pixels_off_the_latent_grid_are_refused(ltx: VideoVAE, height: int, width: int) -> None:
    with pytest.raises(OutOfRange, match=f"{height} x {width} pixels, expected multiples of 32 x 32"):
        ltx.latent_shape(9, height, width)


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_bfloat16_network_keeps_its_statistics_in_float32(golden: Path, name: str) -> None:
    vae = load_vae(golden / "ckpt", preset(name), CPU, torch.bfloat16)
    exact = load_vae(golden / "ckpt", preset(name), CPU, torch.float32)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.bfloat16}
    for kept, expected in zip(vae.statistics(), exact.statistics(), strict=True):
        assert torch.equal(kept, expected)
    video = noise(1, 3, 9, 64, 64).tanh()
    assert vae.encode(video).dtype == torch.float32
    assert vae.decode(vae.encode(video)).dtype == torch.bfloat16


def test_rows_of_a_batch_are_independent(vae: VideoVAE) -> None:
    video = noise(2, 3, 9, 64, 64).tanh()
    together = vae.decode(vae.encode(video))
    for row in range(2):
        one = video[row : row + 1]
        assert deviation(together[row : row + 1], vae.decode(vae.encode(one))) <= 1e-5


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))
