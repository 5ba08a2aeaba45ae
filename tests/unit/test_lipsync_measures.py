"""The benchmark's eyes: on drawn frames whose truth is known they see it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.faces import Observer, best_lag, seam_ratio
from training.drawing import Artist, Expression
from training.faces import sample_face
from training.pictures import SIDE

OPENINGS = np.abs(np.sin(np.arange(24) * 0.45)) * np.linspace(0.3, 1, 24)


def frames(seed: int, blur: float = 0.0, **moved: float) -> tuple[Observer, np.ndarray]:
    face = sample_face(np.random.default_rng(seed))
    artist = Artist(face, SIDE)
    drawn = [artist.draw(Expression(float(opening), 0.2, 0.1, **moved)) for opening in OPENINGS]
    if blur:
        drawn = [cv2.GaussianBlur(frame, (0, 0), blur) for frame in drawn]
    return Observer(face, SIDE), np.stack(drawn)


@pytest.mark.parametrize("seed", [101, 102, 103])
@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_the_opening_is_seen(seed: int, blur: float) -> None:
    observer, clip = frames(seed, blur, roll=0.03)
    seen = np.array([observer.look(frame).opening for frame in clip])
    lag, correlation = best_lag(seen, OPENINGS)
    assert lag == 0
    assert correlation > 0.9


def test_a_delay_of_two_frames_is_seen() -> None:
    observer, clip = frames(101)
    seen = np.array([observer.look(frame).opening for frame in clip])
    lag, _ = best_lag(np.roll(seen, 2)[2:], OPENINGS[2:])
    assert lag == 2


def test_a_mouth_that_never_moves_agrees_with_nothing() -> None:
    assert best_lag(np.zeros(24), OPENINGS)[1] == 0


def test_the_head_s_movement_is_seen_and_taken_back() -> None:
    face = sample_face(np.random.default_rng(104))
    observer = Observer(face, SIDE)
    moved = Artist(face, SIDE).draw(Expression(roll=0.05, shift=(0.08, 0.04)))
    still, look = observer.look(observer.portrait), observer.look(moved)
    assert np.hypot(*still.shift) < 0.2
    assert still.psnr_db > 45
    expected = 0.08 * face.half_width_share * SIDE
    assert look.shift[0] == pytest.approx(expected, abs=1.0)
    assert look.turn == pytest.approx(0.05, abs=0.02)
    assert look.psnr_db > 20


def test_another_face_is_not_taken_for_the_portrayed() -> None:
    observer = Observer(sample_face(np.random.default_rng(105)), SIDE)
    other = Observer(sample_face(np.random.default_rng(106)), SIDE).portrait
    assert observer.look(other).psnr_db < 18


def test_seams_show() -> None:
    random = np.random.default_rng(0)
    smooth = np.cumsum(random.integers(-2, 3, (49, 4, 4, 3)), axis=0) + 128
    seamed = smooth.copy()
    seamed[24:] += 20
    seamed[48:] += 20
    seams = range(24, 49, 24)
    assert seam_ratio(smooth.astype(np.uint8), seams) < 1.5
    assert seam_ratio(seamed.astype(np.uint8), seams) > 3
    seamed[48:] -= 20
    assert seam_ratio(seamed.astype(np.uint8), seams) > 3
