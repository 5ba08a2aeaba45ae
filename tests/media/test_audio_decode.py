"""Speech of every format, rate and channel count comes out as the same sound at both rates."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import soxr

from serve_app.config import Limits
from serve_app.media.audio_decode import DecodedAudio, decode_audio

from media.sounds import KINDS, Kind, encoded, piped, speech_like, wav

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000]


def decoded(kind: Kind, samples: np.ndarray, rate: int) -> DecodedAudio:
    return decode_audio(encoded(kind, samples, rate), Limits())


def check(speech: DecodedAudio, samples: np.ndarray, rate: int, kind: Kind) -> None:
    """Length, alignment with the original at both rates, and fidelity."""
    expected48 = -(-len(samples) * 48_000 // rate)
    spare = -(-kind.spare_samples * 48_000 // rate)
    assert expected48 <= len(speech.pcm48) <= expected48 + spare
    assert len(speech.pcm16) == -(-len(speech.pcm48) // 3)
    for pcm, target in ((speech.pcm16, 16_000), (speech.pcm48, 48_000)):
        assert pcm.dtype == np.float32 and np.abs(pcm).max() <= 1
        original = (
            soxr.resample(samples.mean(axis=1), rate, target) if rate != target else samples.mean(axis=1)
        )
        common = min(len(original), len(pcm))
        assert lag(pcm[:common], original[:common]) == 0
        assert snr_db(pcm[:common], original[:common]) > kind.snr_db


def lag(one: np.ndarray, other: np.ndarray) -> int:
    """Samples by which ``one`` comes later than ``other``."""
    size = 1 << (len(one) + len(other)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)))
    at = int(np.argmax(correlation))
    return at if at < size // 2 else at - size


def snr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = one.astype(np.float64) - other
    return float(10 * np.log10(np.sum(np.square(other, dtype=np.float64)) / (np.sum(error**2) + 1e-12)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format(kind: Kind, channels: int) -> None:
    samples = speech_like(48_000, channels=channels)
    check(decoded(kind, samples, 48_000), samples, 48_000, kind)


@pytest.mark.parametrize("rate", RATES)
def test_every_rate(rate: int) -> None:
    samples = speech_like(rate)
    check(decoded(KINDS["wav"], samples, rate), samples, rate, KINDS["wav"])


@pytest.mark.parametrize("name", ["mp3", "ogg", "m4a", "flac"])
@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_common_rates_of_common_formats(name: str, rate: int) -> None:
    samples = speech_like(rate)
    check(decoded(KINDS[name], samples, rate), samples, rate, KINDS[name])


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
def test_channels_are_averaged(channels: int) -> None:
    samples = speech_like(24_000, channels=channels)
    check(decoded(KINDS["wav"], samples, 24_000), samples, 24_000, KINDS["wav"])


def test_24_khz_wav_keeps_what_16_khz_would_lose() -> None:
    """The listener's copy comes from the original, not from the model's copy."""
    tone = 0.5 * np.sin(2 * np.pi * 10_000 * np.arange(24_000) / 24_000)[:, np.newaxis]
    speech = decoded(KINDS["wav"], tone.astype(np.float32), 24_000)
    assert np.sqrt(np.mean(speech.pcm48**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)
    assert np.sqrt(np.mean(speech.pcm16[100:-100] ** 2)) < 1e-4


@pytest.mark.parametrize("samples", [1, 2, 639, 641, 24_001])
def test_short_clips_and_odd_lengths(samples: int) -> None:
    speech = decode_audio(wav(samples=b"\1\0" * samples), Limits())
    assert len(speech.pcm48) == 2 * samples
    assert len(speech.pcm16) == -(-2 * samples // 3)


def test_a_wav_written_to_a_pipe_says_no_size_and_is_taken() -> None:
    plain = decode_audio(wav(), Limits())
    piped = decode_audio(wav(data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF), Limits())
    assert len(piped.pcm48) == len(plain.pcm48) == 48_000


@pytest.mark.parametrize(
    ("muxer", "codec", "spare"),
    [
        ("wav", "pcm_s16le", 0),
        ("flac", "flac", 0),
        ("ogg", "libopus", 0),
        ("webm", "libopus", 48),
        ("mp3", "libmp3lame", 2 * 1152),
    ],
)
def test_what_comes_out_of_a_pipe_does_not_know_its_length(muxer: str, codec: str, spare: int) -> None:
    samples = speech_like(48_000, seconds=5)
    data = piped(Kind(muxer, muxer=muxer, codec=codec), samples, 48_000)
    assert 0 <= len(decode_audio(data, Limits()).pcm48) - len(samples) <= spare


def test_an_mp3_of_varying_bit_rate_without_a_header_is_taken_whole() -> None:
    """A guess from its first bit rate would end it early."""
    vbr = {"flags": "+qscale", "global_quality": "236"}
    kind = Kind("mp3", muxer="mp3", codec="libmp3lame", options={"write_xing": "0"}, codec_options=vbr)
    samples = np.random.default_rng(0).standard_normal((48_000 * 10, 1)).astype(np.float32) * 0.2
    samples[48_000:] = 0
    speech = decode_audio(encoded(kind, samples, 48_000), Limits())
    assert 0 <= len(speech.pcm48) - len(samples) <= 2 * 1152 + 576


def test_values_past_full_scale_are_clipped() -> None:
    loud = np.full((4800, 1), 3e38, np.float32)
    speech = decoded(KINDS["wav float"], loud, 48_000)
    assert speech.pcm48.max() == 1.0 and np.isfinite(speech.pcm16).all()


def test_the_first_audio_stream_is_taken_and_pictures_are_not() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as muxer:
        video = muxer.add_stream("libvpx-vp9", rate=25, width=64, height=64, pix_fmt="yuv420p")
        streams = [muxer.add_stream("flac", rate=48_000, layout="mono") for _ in range(2)]
        for index in range(25):
            picture = av.VideoFrame.from_ndarray(np.zeros((96, 64), np.uint8), "yuv420p")
            picture.pts = index
            muxer.mux(video.encode(picture))
        for stream, level in zip(streams, (8000, -8000), strict=True):
            sound = av.AudioFrame.from_ndarray(np.full((1, 48_000), level, np.int16), "s16", "mono")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, 0, Fraction(1, 48_000)
            muxer.mux(stream.encode(sound))
        for stream in (video, *streams):
            muxer.mux(stream.encode(None))
    speech = decode_audio(file.getvalue(), Limits())
    assert len(speech.pcm48) == 48_000 and speech.pcm48[1000] > 0.2


def test_an_m4a_in_fragments_is_taken_whole() -> None:
    """What such a file says of its length when opened is only its first fragment's."""
    fragments = {"movflags": "empty_moov+default_base_moof", "frag_duration": "240000"}
    samples = speech_like(48_000)
    speech = decoded(Kind("m4a", muxer="mp4", codec="aac", options=fragments), samples, 48_000)
    assert 0 <= len(speech.pcm48) - len(samples) <= 2048
