"""The colour match, held to the golden numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from serve_app.engine.colour import lab_to_rgb, match_colour, reference_statistics, rgb_to_lab
from serve_app.engine.yuv import to_uint8


@pytest.fixture(scope="module")
def color(golden_tensors) -> dict[str, Tensor]:
    return golden_tensors("color")


def planes(channel_last: Tensor) -> Tensor:
    """``[1, frames, H, W, 3]`` as ``[frames, 3, H * W]``."""
    return channel_last[0].flatten(1, 2).transpose(1, 2)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_matched_colours(color: dict[str, Tensor], strength: float) -> None:
    reference = reference_statistics(color["reference"][0, :, 0])
    found = match_colour(color["video"], reference, strength)
    assert_close(found, color[f"corrected_strength_{strength}"])


def test_lab_and_back(color: dict[str, Tensor]) -> None:
    rgb = ((color["video"] + 1) / 2)[0].transpose(0, 1).flatten(2)
    assert_close(rgb_to_lab(rgb), planes(color["lab"]))
    assert_close(lab_to_rgb(planes(color["lab"])), planes(color["lab_to_rgb"]))


def test_uint8_frames(color: dict[str, Tensor]) -> None:
    found = to_uint8(color["corrected_strength_1.0"], "truncate").permute(0, 2, 3, 1)
    assert torch.equal(found, color["frames_u8"])


def test_a_frame_does_not_depend_on_the_others(color: dict[str, Tensor]) -> None:
    reference = reference_statistics(color["reference"][0, :, 0])
    together = match_colour(color["video"], reference, 1.0)
    for frame in range(together.shape[2]):
        alone = match_colour(color["video"][:, :, frame : frame + 1], reference, 1.0)
        assert_close(alone, together[:, :, frame : frame + 1])


def test_the_reference_itself_stays_as_it_is() -> None:
    image = torch.rand(1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    matched = match_colour(image, reference_statistics(image[0, :, 0]), 1.0)
    assert (matched - image).abs().max() < 1e-3


def test_colour_is_float32_whatever_the_video_is(color: dict[str, Tensor]) -> None:
    reference = reference_statistics(color["reference"][0, :, 0])
    video = color["video"].bfloat16()
    for strength in (1.0, 0.0):
        matched = match_colour(video, reference, strength)
        assert torch.equal(matched, match_colour(video.float(), reference, strength))


def test_a_constant_frame_stays_finite() -> None:
    reference = reference_statistics(torch.rand(3, 8, 8) * 2 - 1)
    for level in (-1.0, 0.0, 1.0, 2.0):
        matched = match_colour(torch.full((1, 3, 2, 8, 8), level), reference, 1.0)
        assert torch.isfinite(matched).all()
