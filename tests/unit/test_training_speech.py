"""Speech and mouths: what is heard and what is seen happen at the same time."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from training.drawing import Expression
from training.motion import expressions
from training.sound import recorded
from training.speech import RATE_HZ, Phoneme, speak
from training.talks import SAMPLES_PER_FRAME, WINDOW_FRAMES, Windows, held_out_talk, sample_talk
from training.texts import (
    HELD_OUT_VOICES,
    TRAINING_LANGUAGES,
    TRAINING_VARIANTS,
    babble,
    training_voice,
)
from training.visemes import FPS, track


def espeak_missing() -> str | None:
    try:
        ctypes.CDLL("libespeak-ng.so.1")
    except OSError as error:
        return str(error)
    return None


needs_espeak = pytest.mark.skipif(espeak_missing() is not None, reason=f"espeak-ng: {espeak_missing()}")


def said(name: str, start_s: float, end_s: float) -> Phoneme:
    return Phoneme(name, start_s, end_s)


def test_the_mouth_opens_in_the_frames_of_a_vowel() -> None:
    mouth = track([said("a", 0.4, 0.6)], 25)
    opening = mouth[:, 0]
    assert opening[11:14].min() > 0.9
    assert opening[:8].max() < 0.01
    assert opening[17:].max() < 0.01
    assert 10 <= np.argmax(opening) <= 14


def test_a_later_start_moves_the_track_by_as_many_frames() -> None:
    phonemes = [said("m", 0.0, 0.1), said("a", 0.1, 0.3), said("u", 0.3, 0.5)]
    early, late = track(phonemes, 40), track(phonemes, 40, start_s=0.4)
    assert np.allclose(late[10:], early[:-10], atol=1e-6)
    assert not late[:7].any()


def test_lips_meet_for_a_labial_between_vowels() -> None:
    opening = track([said("a", 0.0, 0.3), said("b", 0.3, 0.42), said("a", 0.42, 0.7)], 18)[:, 0]
    assert opening[8:10].min() < 0.15
    assert opening[4] > 0.9
    assert opening[14] > 0.9


def test_rounded_vowels_round_and_spread_ones_spread() -> None:
    spread, rounded = track([said("i", 0.0, 0.4), said("u", 0.4, 0.8)], 20)[[5, 15]]
    assert spread[1] > 0.8 > 0 > rounded[1]
    assert rounded[2] > 0.9
    assert spread[2] < 0.05


@needs_espeak
def test_phonemes_are_where_they_are_heard() -> None:
    """In "papa" the lips close where the sound is silent, and are wide where it is loud."""
    speech = speak("papa, papa, papa.", "en-us", 130)
    frames = int(speech.duration_s * FPS)
    power = (speech.samples[: frames * SAMPLES_PER_FRAME].reshape(frames, -1) ** 2).mean(1)
    loud = np.sqrt(power / power.max())
    opening = track(speech.phonemes, frames)[:, 0]

    def agreement(lag: int) -> float:
        return float(np.corrcoef(np.roll(opening, lag)[4:-4], loud[4:-4])[0, 1])

    lags = {lag: agreement(lag) for lag in range(-4, 5)}
    assert lags[0] > 0.6
    assert abs(max(lags, key=lags.__getitem__)) <= 1


@needs_espeak
def test_every_training_voice_speaks() -> None:
    for variant in TRAINING_VARIANTS:
        assert speak("ba", TRAINING_LANGUAGES[0] + variant).duration_s > 0.1
    for language in TRAINING_LANGUAGES:
        assert speak("ba", language + TRAINING_VARIANTS[1]).duration_s > 0.1


@needs_espeak
def test_an_unknown_voice_is_refused() -> None:
    with pytest.raises(ValueError, match="klingon-b"):
        speak("ba", "klingon-b")


def test_what_is_measured_is_never_trained_on() -> None:
    assert not {f"{lang}{variant}" for lang in TRAINING_LANGUAGES for variant in TRAINING_VARIANTS} & set(
        HELD_OUT_VOICES
    )


def test_babble_follows_from_the_seed() -> None:
    def made(seed: int) -> tuple[str, str]:
        random = np.random.default_rng(seed)
        return training_voice(random), babble(random, 5)

    assert made(1) == made(1) != made(2)


def test_recording_keeps_the_time() -> None:
    """Tone, room, gain and noise change the sound and not when it is heard."""
    clean = np.zeros(RATE_HZ, np.float32)
    clean[6000:7000] = np.random.default_rng(0).standard_normal(1000) * 0.2
    for seed in range(12):
        heard = recorded(clean, np.random.default_rng(seed))
        assert heard.shape == clean.shape
        assert np.abs(heard).max() <= 1
        overlap = np.correlate(heard, clean[5900:7100], mode="valid")
        assert abs(int(np.argmax(np.abs(overlap))) - 5900) <= 8


@needs_espeak
def test_a_talk_follows_from_its_seed_and_fits_its_frames() -> None:
    one, again = sample_talk((1, 2), 60), sample_talk((1, 2), 60)
    assert np.array_equal(one.samples, again.samples)
    assert np.array_equal(one.track, again.track)
    assert one.frames == 60
    assert len(one.samples) == 60 * SAMPLES_PER_FRAME
    assert one.expression(-3).opening == 0


@needs_espeak
def test_windows_begin_with_silence_until_the_talk_begins() -> None:
    talk = held_out_talk(0, 100)
    window, mouth = talk.window(50), talk.track_window(50)
    assert len(window) == WINDOW_FRAMES * SAMPLES_PER_FRAME
    assert not window[: -50 * SAMPLES_PER_FRAME].any()
    assert np.array_equal(window[-50 * SAMPLES_PER_FRAME :], talk.samples[: 50 * SAMPLES_PER_FRAME])
    assert np.array_equal(mouth[-50:], talk.track[:50])
    item = Windows(3)[1]
    assert item["samples"].shape == (128_000,)
    assert item["track"].shape == (200, 3)


def test_the_head_bows_with_the_voice_and_comes_back_in_silence() -> None:
    mouth = np.zeros((200, 3), np.float32)
    mouth[40:100] = (0.6, 0.0, 0.5)
    frames = expressions(mouth)
    assert frames[0] == Expression()
    assert frames[99].shift[1] > 0.08 > 0.04 > frames[45].shift[1]
    assert frames[99].roll > 0.01
    assert abs(frames[199].shift[1]) + abs(frames[199].roll) < 0.01


def test_the_eyes_blink_once_in_a_pause() -> None:
    mouth = np.zeros((100, 3), np.float32)
    mouth[:30, 0] = mouth[60:, 0] = 0.5
    blink = np.array([frame.blink for frame in expressions(mouth)])
    assert blink[30:45].max() == 1
    assert not blink[:30].any()
    assert not blink[45:].any()


@needs_espeak
def test_speech_that_fails_is_an_error_and_not_the_last_word() -> None:
    with pytest.raises(ValueError, match="espeak-ng failed with 1"):
        speak("Good morning.", "en-us", words_per_minute=170.5)  # type: ignore[arg-type]
    assert speak("Good morning.", "en-us").duration_s > 0.3
