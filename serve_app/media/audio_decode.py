"""Uploaded speech to samples: decoded once, resampled twice from the same zero, 16 kHz for the model and
48 kHz for the listener."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from serve_app.config import Limits
from serve_app.errors import MalformedInput, OutOfRange, TooLarge, UnsupportedMedia
from serve_app.media.audio_formats import MIN_HELD, AudioFormat, sniff_audio
from serve_app.media.audio_readers import DecodedStream, open_audio
from serve_app.types import LISTENER_RATE_HZ, MODEL_RATE_HZ

ACCEPTED = "WAV, MP3, FLAC, Ogg (Vorbis, Opus), M4A or WebM"


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """Speech, mono, float32 in [-1, 1]; both copies start at the same instant.

    ``pcm48`` ``[n48]`` at 48 kHz says how long it is; ``pcm16`` ``[ceil(n48 / 3)]`` at 16 kHz covers
    the same time.
    """

    pcm16: np.ndarray
    pcm48: np.ndarray


def decode_audio(data: bytes, limits: Limits) -> DecodedAudio:
    """The first audio stream of an uploaded file, channels averaged.

    Decoding stops at the first block past a limit, so a small file that unpacks to hours costs little.

    Raises:
        MalformedInput: empty, no samples, truncated, lying about its length, undecodable, not finite.
        UnsupportedMedia: not audio of a format that is read.
        TooLarge: more bytes or seconds than ``limits`` allow.
        OutOfRange: sample rate or channel count outside ``limits``.
    """
    audio_format = _checked_format(data, limits)
    with open_audio(data, audio_format) as stream:
        _check_stream(stream, limits)
        mono = _decode_mono(stream, limits)
        rate_hz = stream.rate_hz
    samples48 = -(-len(mono) * LISTENER_RATE_HZ // rate_hz)
    samples16 = -(-samples48 * MODEL_RATE_HZ // LISTENER_RATE_HZ)
    return DecodedAudio(
        pcm16=_resampled(mono, rate_hz, MODEL_RATE_HZ, samples16),
        pcm48=_resampled(mono, rate_hz, LISTENER_RATE_HZ, samples48),
    )


def _checked_format(data: bytes, limits: Limits) -> AudioFormat:
    if not data:
        raise MalformedInput("the audio file is empty", code="empty_audio", value=0)
    if len(data) > limits.max_audio_bytes:
        raise TooLarge(
            f"the audio file has {len(data)} bytes; at most {limits.max_audio_bytes} are taken",
            code="audio_too_large",
            value=len(data),
            accepted=limits.max_audio_bytes,
        )
    audio_format = sniff_audio(data)
    if audio_format is None:
        raise UnsupportedMedia(
            f"the audio file begins like no format that is read; accepted: {ACCEPTED}",
            code="not_audio",
            accepted=ACCEPTED,
        )
    _check_held(audio_format.held(data))
    return audio_format


def _check_held(held: float) -> None:
    if held < MIN_HELD:
        raise MalformedInput(
            f"the audio file holds {held:.0%} of the length it claims; at least {MIN_HELD:.0%} is needed",
            code="truncated_audio",
            value=round(held, 4),
            accepted=MIN_HELD,
        )


def _check_stream(stream: DecodedStream, limits: Limits) -> None:
    _check_range("channels", stream.channels, 1, limits.max_audio_channels)
    _check_range("sample rate", stream.rate_hz, limits.min_audio_rate_hz, limits.max_audio_rate_hz)
    if stream.claimed_samples is not None:
        _check_duration(stream.claimed_samples / stream.rate_hz, limits)


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OutOfRange(
            f"the audio has {what} {value}; accepted: {low} to {high}",
            code=f"audio_{what.replace(' ', '_')}_out_of_range",
            value=value,
            accepted=[low, high],
        )


def _check_duration(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_audio_s:
        raise TooLarge(
            f"the audio lasts longer than {limits.max_audio_s:g} s, the longest that is taken",
            code="audio_too_long",
            value=round(seconds, 3),
            accepted=limits.max_audio_s,
        )


def _decode_mono(stream: DecodedStream, limits: Limits) -> np.ndarray:
    """``[n]`` float32 at the stream's own rate, each block checked as it comes."""
    blocks: list[np.ndarray] = []
    samples = 0
    for block in stream.blocks:
        samples += len(block)
        _check_duration(samples / stream.rate_hz, limits)
        if not np.isfinite(block).all():
            raise MalformedInput("the audio holds samples that are no numbers", code="audio_not_finite")
        blocks.append(np.clip(block, -1.0, 1.0).mean(axis=1))
    if samples == 0:
        raise MalformedInput("the audio holds no samples", code="empty_audio", value=0)
    if stream.claimed_samples:
        _check_held(samples / stream.claimed_samples)
    return np.concatenate(blocks)


def _resampled(mono: np.ndarray, rate_hz: int, target_hz: int, samples: int) -> np.ndarray:
    """``[samples]`` at ``target_hz``, aligned with ``mono``'s start; filter overshoot clipped."""
    pcm = soxr.resample(mono, rate_hz, target_hz, quality="HQ") if rate_hz != target_hz else mono
    fitted = np.zeros(samples, np.float32)
    kept = pcm[:samples]
    np.clip(kept, -1.0, 1.0, out=fitted[: len(kept)])
    return fitted
