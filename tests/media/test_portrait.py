"""Portraits: the released model's pixels exactly, and every kind of picture people send."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from serve_app.config import Limits
from serve_app.errors import OutOfRange, TooLarge
from serve_app.media.face_crop import clipped_square, find_largest_face, padded_square
from serve_app.media.portrait import NO_FACE_WARNING, decode_portrait, resize_and_crop

EXAMPLE = Path(__file__).parents[2] / "examples" / "portrait.png"
LIMITS = Limits()


@pytest.fixture(scope="module")
def tensors(golden: Path) -> dict[str, np.ndarray]:
    return load_file(golden / "image.safetensors")


@pytest.fixture(scope="module")
def original(golden: Path) -> Image.Image:
    return Image.open(golden / "portrait.png").convert("RGB")


@pytest.fixture(scope="module")
def boxes(golden: Path) -> list[tuple[float, float, float, float]]:
    meta = json.loads((golden / "meta.json").read_text())
    return [tuple(box) for box in meta["face_boxes_xyxy_pixels"]]


@pytest.mark.parametrize(
    ("name", "height", "width"), [("lite", 64, 32), ("pro", 32, 48), ("sq", 60, 60), ("up", 160, 112)]
)
def test_resize_and_centre_crop_are_exact(
    golden: Path, tensors: dict[str, np.ndarray], name: str, height: int, width: int
) -> None:
    wanted = tensors[f"resized_{name}"][0, :, 0].transpose(1, 2, 0)
    data = (golden / "portrait.png").read_bytes()
    portrait = decode_portrait(data, height, width, False, LIMITS)
    assert portrait.pixels.dtype == np.uint8
    assert np.array_equal(portrait.pixels, wanted)
    assert portrait.warnings == ()


@pytest.mark.parametrize("index", range(3))
def test_the_reference_crop_is_exact(
    original: Image.Image, boxes: list, tensors: dict[str, np.ndarray], index: int
) -> None:
    crop = original.crop(clipped_square(original.size, boxes[index]))
    assert np.array_equal(np.asarray(crop), tensors[f"facecrop_{index}"])
    small = crop.resize((48, 48))
    assert np.array_equal(np.asarray(small), tensors[f"facecrop_{index}_resized48"])


@pytest.mark.parametrize("index", range(3))
def test_the_crop_that_is_used_is_square_and_holds_the_reference_crop(
    original: Image.Image, boxes: list, index: int
) -> None:
    square = padded_square(original, boxes[index])
    x1, y1, x2, y2 = boxes[index]
    assert square.width == square.height == pytest.approx(2 * (x2 - x1), abs=1)
    left, top, right, bottom = clipped_square(original.size, boxes[index])
    reference = np.asarray(original.crop((left, top, right, bottom)))
    at_left, at_top = left - int(x1 / 2 + x2 / 2 - (x2 - x1)), top - int(y1 / 2 + y2 / 2 - 1.1 * (x2 - x1))
    inside = np.asarray(square)[at_top:, at_left:][: reference.shape[0], : reference.shape[1]]
    assert min(inside.shape[0] - reference.shape[0], inside.shape[1] - reference.shape[1]) >= -1
    assert np.array_equal(inside, reference[: inside.shape[0], : inside.shape[1]])


def test_past_the_border_its_pixels_go_on() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (100, 100, 3)).astype(np.uint8))
    pixels = np.asarray(image)
    square = np.asarray(padded_square(image, (0.0, 40.0, 60.0, 100.0)))
    assert square.shape == (120, 120, 3)
    assert np.array_equal(square[:, 0], square[:, 29])
    assert np.array_equal(square[:96, 30:], pixels[4:, :90])
    assert np.array_equal(square[119], square[95])


def as_file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, side: int = 80) -> np.ndarray:
    return decode_portrait(data, side, side, False, LIMITS).pixels


def quadrants() -> Image.Image:
    """Red, green over blue, white; 80x80."""
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    return Image.fromarray(np.kron(corners, np.ones((40, 40, 1), np.uint8)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind: str) -> None:
    found = pixels(as_file(quadrants(), kind, quality=95))
    assert np.abs(found[[20, 20, 60, 60], [20, 60, 20, 60]].astype(int) - CORNERS).max() <= 3


CORNERS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    """However a camera was held, the picture comes out upright."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    held = quadrants().transpose(undo[orientation]) if orientation in undo else quadrants()
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(as_file(held, exif=exif)), np.asarray(quadrants()))


def test_a_damaged_exif_block_harms_nothing() -> None:
    data = as_file(quadrants(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x12\x01" * 20)
    assert np.abs(pixels(data)[20, 20].astype(int) - [255, 0, 0]).max() <= 3


def test_transparency_shows_white() -> None:
    picture = quadrants().convert("RGBA")
    alpha = np.full((80, 80), 255, np.uint8)
    alpha[:40, :40], alpha[:40, 40:] = 0, 128
    picture.putalpha(Image.fromarray(alpha))
    for kind in ("PNG", "WEBP"):
        found = pixels(as_file(picture, kind, lossless=True, exact=True)).astype(int)
        assert found[20, 20].tolist() == [255, 255, 255]
        assert np.abs(found[20, 60] - [127, 255, 127]).max() <= 1
        assert found[60, 20].tolist() == [0, 0, 255]


def test_a_transparent_palette_colour_shows_white() -> None:
    palette = quadrants().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    red = palette.getpixel((20, 20))
    found = pixels(as_file(palette, transparency=red))
    assert found[20, 20].tolist() == [255, 255, 255]
    assert found[20, 60].tolist() == [0, 255, 0]


def test_grey_16_bit_palette_one_bit_and_cmyk() -> None:
    ramp = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (80, 1))
    grey = np.repeat(ramp[..., np.newaxis], 3, -1)
    assert np.array_equal(pixels(as_file(Image.fromarray(ramp))), grey)
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert np.array_equal(pixels(as_file(deep)), grey)
    assert np.array_equal(pixels(as_file(quadrants().convert("P"))), np.asarray(quadrants()))
    halves = Image.fromarray(ramp > 127)
    assert set(np.unique(pixels(as_file(halves)))) == {0, 255}
    cmyk = pixels(as_file(quadrants().convert("CMYK"), "JPEG", quality=98)).astype(int)
    assert np.abs(cmyk[[20, 20, 60, 60], [20, 60, 20, 60]] - CORNERS).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture(kind: str) -> None:
    frames = [quadrants(), Image.new("RGB", (80, 80))]
    data = as_file(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert np.array_equal(pixels(data), np.asarray(quadrants()))


@pytest.mark.parametrize("size", [(80, 200), (333, 64), (64, 64), (1000, 997)])
def test_the_centre_fills_the_frame(size: tuple[int, int]) -> None:
    """Nothing is stretched: the model's frame is covered and what hangs over is cut evenly."""
    columns = np.tile(np.arange(size[0]) * 255 // size[0], (size[1], 1)).astype(np.uint8)
    found = np.asarray(resize_and_crop(Image.fromarray(columns).convert("RGB"), 64, 64))
    assert found.shape == (64, 64, 3)
    left, right = int(found[32, 0, 0]), int(found[32, 63, 0])
    assert abs(left + right - 255) <= 6


def test_limits_are_the_configured_ones() -> None:
    data = as_file(quadrants())
    with pytest.raises(TooLarge):
        decode_portrait(data, 64, 64, False, Limits(max_image_pixels=80 * 80 - 1))
    with pytest.raises(OutOfRange):
        decode_portrait(data, 64, 64, False, Limits(min_image_side_px=81))
    assert decode_portrait(data, 64, 64, False, Limits(max_image_pixels=6400, min_image_side_px=80))


# Faces


def test_the_example_has_a_face_in_its_middle() -> None:
    box = find_largest_face(Image.open(EXAMPLE).convert("RGB"))
    assert box is not None
    assert 226 < (box[0] + box[2]) / 2 < 286 and 180 < (box[1] + box[3]) / 2 < 260
    assert 170 < box[2] - box[0] < 220


def test_the_crop_frames_the_face_wherever_it_is() -> None:
    """The same face, small and off centre in a large picture, fills the frame as before."""
    example = Image.open(EXAMPLE).convert("RGB")
    scene = Image.new("RGB", (1600, 1200), example.getpixel((0, 0)))
    scene.paste(example, (900, 500))
    close = decode_portrait(as_file(scene), 128, 128, True, LIMITS)
    direct = decode_portrait(EXAMPLE.read_bytes(), 128, 128, True, LIMITS)
    assert close.warnings == direct.warnings == ()
    middle = (slice(30, 100), slice(40, 88))
    difference = np.abs(close.pixels[middle].astype(int) - direct.pixels[middle])
    assert difference.mean() < 20
    uncropped = decode_portrait(as_file(scene), 128, 128, False, LIMITS)
    assert np.abs(uncropped.pixels[middle].astype(int) - direct.pixels[middle]).mean() > 40


def test_of_two_faces_the_larger() -> None:
    example = Image.open(EXAMPLE).convert("RGB")
    scene = Image.new("RGB", (1000, 512), (190, 196, 204))
    scene.paste(example.resize((300, 300)), (0, 100))
    scene.paste(example, (480, 0))
    box = find_largest_face(scene)
    assert box is not None and (box[0] + box[2]) / 2 > 600


def test_no_face_is_a_warning_and_no_crop() -> None:
    data = as_file(quadrants())
    asked = decode_portrait(data, 64, 64, True, LIMITS)
    assert asked.warnings == (NO_FACE_WARNING,)
    assert np.array_equal(asked.pixels, decode_portrait(data, 64, 64, False, LIMITS).pixels)
    assert NO_FACE_WARNING.isascii()
