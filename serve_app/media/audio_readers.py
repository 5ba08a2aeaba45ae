"""Decoders behind one interface: an audio stream as blocks of samples, by soundfile or by PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
import soundfile
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from serve_app.errors import MalformedInput, UnsupportedMedia
from serve_app.media.audio_formats import AudioFormat

BLOCK_SAMPLES = 65_536
UNKNOWN_FRAMES = 2**63 - 1
"""What libsndfile says of a length it does not know."""
FFMPEG_OPTIONS = {
    "format_whitelist": "wav,mp3,ogg,flac,matroska,webm,mov,mp4,m4a",
    "protocol_whitelist": "none",
}
"""No demuxer that follows references to other files, and no way to open one."""


@dataclass(frozen=True, slots=True)
class DecodedStream:
    """A stream that is being decoded: ``blocks`` are ``[n, channels]`` float32, full scale ±1.

    ``claimed_samples`` is the length the file gives itself, ``None`` if it gives none.
    """

    rate_hz: int
    channels: int
    claimed_samples: int | None
    blocks: Iterator[np.ndarray]


@contextmanager
def open_audio(data: bytes, audio_format: AudioFormat) -> Iterator[DecodedStream]:
    """The first audio stream of ``data``; soundfile where it reads the format and takes the file.

    Raises:
        MalformedInput: it cannot be opened or decoded.
        UnsupportedMedia: there is no sound in it.
    """
    file = _soundfile(data) if audio_format.soundfile else None
    try:
        if file is not None:
            with file:
                yield DecodedStream(file.samplerate, file.channels, file.frames, _soundfile_blocks(file))
        else:
            with _container(data, audio_format) as container:
                yield _pyav_stream(container)
    except (soundfile.SoundFileError, av.FFmpegError) as error:
        raise MalformedInput(
            f"the audio begins like {audio_format.demuxer} but cannot be decoded: {_reason(error)}",
            code="malformed_audio",
        ) from error


def _soundfile(data: bytes) -> soundfile.SoundFile | None:
    """``None`` where libsndfile does not take it: a codec it lacks, a damaged header, or FLAC that was
    written to a pipe and does not say how long it is, in which libsndfile loses its place."""
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.SoundFileError:
        return None
    return file if file.frames < UNKNOWN_FRAMES else None


def _soundfile_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    while len(block := file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
        yield block


def _container(data: bytes, audio_format: AudioFormat) -> InputContainer:
    return av.open(
        io.BytesIO(data),
        "r",
        format=audio_format.demuxer,
        options=FFMPEG_OPTIONS,
        metadata_errors="replace",
    )


def _pyav_stream(container: InputContainer) -> DecodedStream:
    if not container.streams.audio:
        raise UnsupportedMedia("there is no sound in the audio file", code="no_sound")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise UnsupportedMedia("the sound is in a codec that is not read", code="unknown_codec")
    return DecodedStream(
        stream.sample_rate,
        stream.channels,
        _claimed_samples(container, stream),
        _pyav_blocks(container, stream),
    )


def _claimed_samples(container: InputContainer, stream: AudioStream) -> int | None:
    """Of the formats PyAV reads two say how long they are; of others FFmpeg's guess is all there is.
    WebM's duration is that of the longest stream, so it says something only of a single one."""
    if "mp4" in container.format.name:
        return _edited_length(stream)
    if "matroska" in container.format.name and len(container.streams) == 1 and container.duration:
        return container.duration * stream.sample_rate // av.time_base
    return None


def _edited_length(stream: AudioStream) -> int | None:
    """Samples an MP4 stream presents; of a file in fragments, as far as it has been read."""
    if not stream.duration or stream.time_base is None:
        return None
    return round(stream.duration * stream.time_base * stream.sample_rate)


def _pyav_blocks(container: InputContainer, stream: AudioStream) -> Iterator[np.ndarray]:
    to_float = AudioResampler(format="flt")
    produced = 0
    for frame in container.decode(stream):
        if (frame.sample_rate, frame.layout.nb_channels) != (stream.sample_rate, stream.channels):
            raise MalformedInput(
                "the audio changes its sample rate or channels on the way", code="malformed_audio"
            )
        for converted in to_float.resample(frame):
            block = converted.to_ndarray().reshape(-1, stream.channels)
            block = block[: _room(container, stream, produced)]
            produced += len(block)
            yield block


def _room(container: InputContainer, stream: AudioStream, produced: int) -> int | None:
    """Samples an MP4 still presents; past them lies the padding of its codec."""
    length = _edited_length(stream) if "mp4" in container.format.name else None
    return None if length is None else max(0, length - produced)


def _reason(error: Exception) -> str:
    """In FFmpeg's words or libsndfile's, without their numbers."""
    return getattr(error, "strerror", None) or getattr(error, "error_string", None) or type(error).__name__
