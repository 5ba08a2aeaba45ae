"""Audio files of every kind, made on the spot: by soundfile where it writes the format, by PyAV elsewhere."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import soundfile


@dataclass(frozen=True)
class Kind:
    """A format as soundfile or PyAV (``muxer``) names it, and how closely its decoding follows the input."""

    name: str
    subtype: str = ""
    muxer: str = ""
    codec: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    codec_options: Mapping[str, str] = field(default_factory=dict)
    snr_db: float = 20.0
    spare_samples: int = 0
    """Padding a decoder may leave at the end."""


KINDS = {
    "wav": Kind("WAV", "PCM_16", snr_db=60),
    "wav 24 bit": Kind("WAV", "PCM_24", snr_db=60),
    "wav float": Kind("WAV", "FLOAT", snr_db=60),
    "wav 8 bit": Kind("WAV", "PCM_U8", snr_db=20),
    "wav mu-law": Kind("WAV", "ULAW", snr_db=25),
    "flac": Kind("FLAC", "PCM_16", snr_db=60),
    "mp3": Kind("MP3", "MPEG_LAYER_III"),
    "ogg": Kind("OGG", "VORBIS"),
    "opus": Kind("OGG", "OPUS"),
    "m4a": Kind("m4a", muxer="mp4", codec="aac"),
    "webm": Kind("webm", muxer="webm", codec="libopus", snr_db=15, spare_samples=48),
    "mkv": Kind("mkv", muxer="matroska", codec="pcm_s16le", snr_db=60, spare_samples=48),
}


def speech_like(rate: int, seconds: float = 1.5, channels: int = 1) -> np.ndarray:
    """``[n, channels]`` float32: a gliding voice with its harmonics below 3 kHz, pulsed like syllables. Its
    channels differ but for their mean."""
    t = np.arange(int(rate * seconds)) / rate
    voice = sum(np.sin(2 * np.pi * k * (140 + 25 * t) * t) / k for k in range(1, 16))
    mono = 0.12 * voice * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)) * np.minimum(1, 20 * t)
    pan = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)
    return (mono[:, np.newaxis] * pan).astype(np.float32)


class Pipe:
    """A file that can only be written on: encoders cannot go back and correct their headers."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        self.parts.append(bytes(part))
        return len(part)


def encoded(kind: Kind, samples: np.ndarray, rate: int) -> bytes:
    """``samples`` ``[n, channels]`` as a file of that kind."""
    file = io.BytesIO()
    if kind.muxer:
        mux(file, kind, samples, rate)
    else:
        soundfile.write(file, samples, rate, format=kind.name, subtype=kind.subtype)
    return file.getvalue()


def piped(kind: Kind, samples: np.ndarray, rate: int) -> bytes:
    """The same as it comes out of a pipe."""
    pipe = Pipe()
    mux(pipe, kind, samples, rate)
    return b"".join(pipe.parts)


def mux(file: object, kind: Kind, samples: np.ndarray, rate: int) -> None:
    """Write with PyAV."""
    with av.open(file, "w", format=kind.muxer, container_options=dict(kind.options)) as muxer:
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
        stream = muxer.add_stream(kind.codec, rate=rate, layout=layout)
        stream.codec_context.options = dict(kind.codec_options)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for part in (frame, None):
            muxer.mux(stream.encode(part))


def wav(
    *,
    samples: bytes = b"\0\0" * 24_000,
    channels: int = 1,
    rate: int = 24_000,
    bits: int = 16,
    data_size: int | None = None,
    riff_size: int | None = None,
    code: int = 1,
) -> bytes:
    """A WAV file whose header may lie."""
    block = channels * bits // 8 & 0xFFFF
    layout = struct.pack("<HHIIHH", code, channels & 0xFFFF, rate, rate * block & 0xFFFFFFFF, block, bits)
    size = len(samples) if data_size is None else data_size
    body = b"WAVE" + b"fmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", size) + samples
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body
