"""Where the face is, and the square around it that FlashHead likes to see.

Faces are found by OpenCV's Haar cascade, which ships in its wheels. The square's side is twice the
face's width, the face a little above its middle (FlashHead spec section 5). The reference clips that
square at the picture's borders and stretches what is left; ``clipped_square`` is its arithmetic, kept
to compare with. What is used is ``padded_square``: the same square, filled up past the border with the
border's own pixels, so that no face is distorted.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

FACE_CROP_SIDE = 512
SIDE_PER_FACE_WIDTH = 2.0
ABOVE, BELOW = 0.55, 0.45
"""Parts of the side above and below the face's centre."""

CASCADE = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"
DETECTION_SIDE = 640
"""Detection runs on a picture of at most this side; its cost grows with the pixels."""
MIN_FACE_PART = 0.08
FACE_PER_CASCADE_SIDE = 0.8
"""The cascade's square reaches past the cheeks; measured on the shipped example and on a photograph."""
SCALE_STEP, MIN_NEIGHBOURS = 1.1, 5

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, not rounded."""


def crop_around_largest_face(image: Image.Image) -> Image.Image | None:
    """The square around the largest face of an RGB picture, at 512x512; ``None`` if no face is found."""
    box = find_largest_face(image)
    if box is None:
        return None
    return padded_square(image, box).resize((FACE_CROP_SIDE, FACE_CROP_SIDE))


def find_largest_face(image: Image.Image) -> Box | None:
    """The box of the largest frontal face in an RGB picture, cheek to cheek."""
    scale = max(1.0, max(image.size) / DETECTION_SIDE)
    size = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX))
    least = max(24, round(MIN_FACE_PART * min(size)))
    faces = cv2.CascadeClassifier(str(CASCADE)).detectMultiScale(
        grey, SCALE_STEP, MIN_NEIGHBOURS, minSize=(least, least)
    )
    if len(faces) == 0:
        return None
    largest = max(faces, key=lambda face: int(face[2] * face[3]))
    left, top, wide, high = (int(value) for value in largest)
    x, y, radius = left + wide / 2, top + high / 2, FACE_PER_CASCADE_SIDE * wide / 2
    return scale * (x - radius), scale * (y - radius), scale * (x + radius), scale * (y + radius)


def clipped_square(size: tuple[int, int], box: Box) -> tuple[int, int, int, int]:
    """The reference's crop: left, top, right, bottom within a picture of ``size`` (width, height)."""
    left, top, right, bottom = _square(box)
    return int(max(0, left)), int(max(0, top)), int(min(size[0], right)), int(min(size[1], bottom))


def padded_square(image: Image.Image, box: Box) -> Image.Image:
    """The same square uncut; past the picture's border its outermost pixels go on."""
    left, top, right, _ = _square(box)
    side = max(1, round(right - left))
    columns = np.clip(np.arange(side) + int(left), 0, image.width - 1)
    rows = np.clip(np.arange(side) + int(top), 0, image.height - 1)
    return Image.fromarray(np.asarray(image)[rows[:, np.newaxis], columns])


def _square(box: Box) -> Box:
    x1, y1, x2, y2 = box
    side = SIDE_PER_FACE_WIDTH * (x2 - x1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - 0.5 * side, y - ABOVE * side, x + 0.5 * side, y + BELOW * side
