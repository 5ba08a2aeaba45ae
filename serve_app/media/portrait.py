"""An uploaded portrait to the pixels a model is conditioned on.

Resizing and cropping follow FlashHead spec section 5 to the pixel. Two departures make real uploads
right: EXIF orientation is applied and transparency is flattened onto white.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serve_app.config import Limits
from serve_app.errors import MalformedInput, OutOfRange, TooLarge, UnsupportedMedia
from serve_app.media.face_crop import crop_around_largest_face

FORMATS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
ACCEPTED = "PNG, JPEG or WebP"
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""
NO_FACE_WARNING = "no face was found; the portrait was not cropped"


@dataclass(frozen=True, slots=True)
class Portrait:
    """``pixels`` ``[height, width, 3]`` uint8 RGB, and what the caller should be told about them."""

    pixels: np.ndarray
    warnings: tuple[str, ...]


def decode_portrait(data: bytes, height: int, width: int, face_crop: bool, limits: Limits) -> Portrait:
    """The portrait at a model's size: oriented, flattened, cropped around its face if asked, resized to
    cover ``height`` x ``width`` and cropped to its centre. Of an animation, the first picture.

    Raises:
        MalformedInput: empty, truncated or undecodable.
        UnsupportedMedia: no PNG, JPEG or WebP.
        TooLarge: more bytes or pixels than ``limits`` allow; pixels are counted before decoding.
        OutOfRange: a side shorter than ``limits`` allow.
    """
    image = _decoded(data, _checked_format(data, limits), limits)
    notes: tuple[str, ...] = ()
    if face_crop:
        cropped = crop_around_largest_face(image)
        image, notes = (cropped, ()) if cropped is not None else (image, (NO_FACE_WARNING,))
    return Portrait(np.asarray(resize_and_crop(image, height, width)), notes)


def resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """``image`` scaled to cover ``height`` x ``width`` (bilinear), then its centre."""
    scale = max(height / image.height, width / image.width)
    scaled_height, scaled_width = math.ceil(scale * image.height), math.ceil(scale * image.width)
    scaled = image.resize((scaled_width, scaled_height), Image.Resampling.BILINEAR)
    top, left = round((scaled_height - height) / 2), round((scaled_width - width) / 2)
    return scaled.crop((left, top, left + width, top + height))


def _checked_format(data: bytes, limits: Limits) -> str:
    if not data:
        raise MalformedInput("the image file is empty", code="empty_image", value=0)
    if len(data) > limits.max_image_bytes:
        raise TooLarge(
            f"the image file has {len(data)} bytes; at most {limits.max_image_bytes} are taken",
            code="image_too_large",
            value=len(data),
            accepted=limits.max_image_bytes,
        )
    for magic, name in FORMATS.items():
        if data.startswith(magic) and (name != "WEBP" or data[8:12] == b"WEBP"):
            return name
    raise UnsupportedMedia(
        f"the image file begins like no format that is read; accepted: {ACCEPTED}",
        code="not_image",
        accepted=ACCEPTED,
    )


def _decoded(data: bytes, name: str, limits: Limits) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on large pictures and damaged metadata
            with Image.open(io.BytesIO(data), formats=[name]) as image:
                _check_size(image, limits)
                return _as_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(None, limits) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise MalformedInput(
            f"the image begins like {name} but cannot be decoded", code="malformed_image"
        ) from error


def _check_size(image: Image.Image, limits: Limits) -> None:
    if image.width * image.height > limits.max_image_pixels:
        raise _too_many_pixels(image.width * image.height, limits)
    if min(image.size) < limits.min_image_side_px:
        raise OutOfRange(
            f"the image is {image.width}x{image.height}; each side needs {limits.min_image_side_px} pixels",
            code="image_too_small",
            value=list(image.size),
            accepted=limits.min_image_side_px,
        )


def _too_many_pixels(pixels: int | None, limits: Limits) -> TooLarge:
    return TooLarge(
        f"the image has more than {limits.max_image_pixels} pixels, the most that are taken",
        code="image_too_many_pixels",
        value=pixels,
        accepted=limits.max_image_pixels,
    )


def _as_rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel, no transparency. Pillow itself would cut 16-bit grey off at 255."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    flat = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
    return Image.alpha_composite(flat, picture).convert("RGB")
