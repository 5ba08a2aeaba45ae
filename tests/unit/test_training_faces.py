"""The drawn faces: the same for a seed, different between seeds, and moved by what they are told."""

from __future__ import annotations

import numpy as np
import pytest

from training.drawing import INSIDE, Artist, Expression
from training.faces import sample_face
from training.pictures import SIDE, Clips


def artist(seed: int) -> Artist:
    return Artist(sample_face(np.random.default_rng(seed)), SIDE)


def mouth(frames: np.ndarray, where: np.ndarray, radius: int = 12) -> np.ndarray:
    x, y = np.round(where[0]).astype(int)
    return frames[y - radius : y + radius, x - radius : x + radius].astype(float)


def test_a_seed_gives_the_same_frame() -> None:
    expression = Expression(opening=0.5, yaw=0.1)
    assert np.array_equal(artist(3).draw(expression), artist(3).draw(expression))


def test_seeds_give_different_people() -> None:
    frames = [artist(seed).draw(Expression()).astype(float) for seed in range(6)]
    for index, frame in enumerate(frames):
        for other in frames[:index]:
            assert np.abs(frame - other).mean() > 8


@pytest.mark.parametrize("seed", range(8))
def test_the_wider_the_mouth_opens_the_more_of_its_inside_is_seen(seed: int) -> None:
    drawn = artist(seed)

    def distance(opening: float) -> np.ndarray:
        """Of the colours round the mouth from its inside's."""
        near = mouth(drawn.draw(Expression(opening=opening)), drawn.features(Expression()))
        return np.abs(near - INSIDE).max(axis=2)

    shown = [np.clip(distance(0.0) - distance(opening), 0, 255).sum() for opening in (0.4, 1.0)]
    assert 500 < shown[0] < shown[1] - 500


def test_only_the_lower_face_moves_with_the_mouth() -> None:
    drawn = artist(1)
    changed = drawn.draw(Expression()) != drawn.draw(Expression(opening=1.0))
    eyes = drawn.features(Expression())[1:, 1].max()
    assert changed.any()
    assert not changed[: int(eyes)].any()


def test_the_head_moves_as_it_is_told() -> None:
    drawn = artist(2)
    still, moved = (drawn.features(Expression(shift=shift)) for shift in ((0.0, 0.0), (0.1, 0.0)))
    assert np.all(moved[:, 0] - still[:, 0] > 1)
    assert np.allclose(moved[:, 1], still[:, 1])


def test_clips_follow_from_their_number() -> None:
    data = Clips(1, frames=9)
    one, again, other = data[4], data[4], data[5]
    for key, value in one.items():
        assert value.equal(again[key])
    assert not one["clip"].equal(other["clip"])
    assert -1 <= one["clip"].min() < one["clip"].max() <= 1
