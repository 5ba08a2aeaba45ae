"""Frames to uint8 and to yuv420p."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serve_app.engine.yuv import to_uint8, yuv420p


def float_reference(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT.601 limited range by its definition, in float64, before rounding; ``rgb [n, 3, H, W]``."""
    red, green, blue = (rgb[:, channel].astype(np.float64) / 255 for channel in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    u, v = (blue - luma) / 1.772, (red - luma) / 1.402
    halved = [plane.reshape(len(rgb), plane.shape[1] // 2, 2, -1, 2).mean((2, 4)) for plane in (u, v)]
    return 16 + 219 * luma, 128 + 224 * halved[0], 128 + 224 * halved[1]


def split(yuv: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The planes of I420 frames."""
    count = len(yuv)
    chroma = yuv[:, height:].reshape(count, 2, height // 2, width // 2)
    return yuv[:, :height], chroma[:, 0], chroma[:, 1]


def all_colours() -> np.ndarray:
    """Every 5th level of each channel with every other, as 2 x 2 blocks of one colour, and noise."""
    levels = np.arange(0, 256, 5)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij")).reshape(3, 1, -1)
    blocks = np.repeat(np.repeat(grid, 2, 1), 2, 2)[:, :, : 2 * 52 * 2600]
    return blocks[None].astype(np.uint8)


@pytest.mark.parametrize("kind", ["colours", "noise"])
def test_equals_the_rounded_definition(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 48), dtype=np.uint8)
    rgb = all_colours() if kind == "colours" else noise
    found = split(yuv420p(torch.from_numpy(rgb)).numpy(), *rgb.shape[2:])
    for plane, exact in zip(found, float_reference(rgb), strict=True):
        # An exact half has no nearest integer: float64 falls to either side of it by its last bit.
        tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-9
        assert np.array_equal(plane[~tie], np.floor(exact + 0.5)[~tie])
        assert np.array_equal(plane[tie], np.ceil(exact - 1e-9)[tie])


def test_white_black_and_grey() -> None:
    for level, luma in ((0, 16), (255, 235), (128, 126)):
        frame = yuv420p(torch.full((1, 3, 4, 6), level, dtype=torch.uint8))
        assert frame.shape == (1, 6, 6)
        assert frame.is_contiguous()
        assert (frame[0, :4] == luma).all()
        assert (frame[0, 4:] == 128).all()


def test_planes_lie_y_u_v() -> None:
    red = torch.zeros(1, 3, 2, 4, dtype=torch.uint8)
    red[:, 0] = 255
    y, u, v = split(yuv420p(red).numpy(), 2, 4)
    assert (y == 81).all()
    assert (u == 90).all()
    assert (v == 240).all()


def test_uint8_rules() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert to_uint8(levels, "truncate")[0, 0, 0].tolist() == [0, 0, 127, 255, 255]
    assert to_uint8(levels, "round")[0, 0, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 3, 3, 4, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 4),
    ],
    ids=["odd height", "odd width", "channels", "dtype"],
)
def test_other_frames_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        yuv420p(frames)
