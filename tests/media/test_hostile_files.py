"""Every file that is not what it should be gets the error that says so, quickly."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from serve_app.config import Limits
from serve_app.errors import FlashHeadError, MalformedInput, OutOfRange, TooLarge, UnsupportedMedia
from serve_app.media.audio_decode import decode_audio
from serve_app.media.portrait import decode_portrait

from media.hostile import (
    CONCAT,
    DASH,
    HLS,
    NOISE,
    SDP,
    SVG,
    TEXT,
    ZEROS,
    cut,
    flac_bomb,
    not_finite,
    picture,
    png_bomb,
    png_text_bomb,
    sound,
    webm_bomb,
    webm_without_sound,
)
from media.sounds import KINDS, encoded, speech_like, wav

QUICKLY_S = 5.0
LIMITS = Limits()

AUDIO: dict[str, tuple[Callable[[], bytes], type[FlashHeadError], str]] = {
    "empty": (lambda: b"", MalformedInput, "empty_audio"),
    "header only": (lambda: wav(samples=b""), MalformedInput, "empty_audio"),
    "half a header": (lambda: wav()[:30], MalformedInput, "malformed_audio"),
    "riff alone": (lambda: b"RIFF\x24\0\0\0WAVE", MalformedInput, "malformed_audio"),
    "ogg alone": (lambda: b"OggS" + bytes(40), MalformedInput, "malformed_audio"),
    "flac alone": (lambda: b"fLaC" + bytes(100), MalformedInput, "malformed_audio"),
    "id3 and text": (lambda: b"ID3\4\0\0\0\0\0\0" + TEXT, MalformedInput, "malformed_audio"),
    "ebml and noise": (lambda: b"\x1a\x45\xdf\xa3" + NOISE, MalformedInput, "malformed_audio"),
    "ftyp and zeros": (lambda: b"\0\0\0\x18ftypisom" + ZEROS, MalformedInput, "malformed_audio"),
    "text": (lambda: TEXT, UnsupportedMedia, "not_audio"),
    "zeros": (lambda: ZEROS, UnsupportedMedia, "not_audio"),
    "noise": (lambda: NOISE, UnsupportedMedia, "not_audio"),
    "sdp": (lambda: SDP, UnsupportedMedia, "not_audio"),
    "concat": (lambda: CONCAT, UnsupportedMedia, "not_audio"),
    "hls": (lambda: HLS, UnsupportedMedia, "not_audio"),
    "dash": (lambda: DASH, UnsupportedMedia, "not_audio"),
    "png": (picture, UnsupportedMedia, "not_audio"),
    "jpeg": (lambda: picture("JPEG"), UnsupportedMedia, "not_audio"),
    "webp, which is riff too": (lambda: picture("WEBP"), UnsupportedMedia, "not_audio"),
    "webm without sound": (webm_without_sound, UnsupportedMedia, "no_sound"),
    "codec of its own": (lambda: wav(code=0x1234), UnsupportedMedia, "unknown_codec"),
    "65535 channels": (lambda: wav(channels=65_535), OutOfRange, "audio_channels_out_of_range"),
    "9 channels": (lambda: wav(channels=9), OutOfRange, "audio_channels_out_of_range"),
    "no channels": (lambda: wav(channels=0), OutOfRange, "audio_channels_out_of_range"),
    "4 GHz": (lambda: wav(rate=4_000_000_000), MalformedInput, "malformed_audio"),
    "7999 Hz": (lambda: wav(rate=7_999), OutOfRange, "audio_sample_rate_out_of_range"),
    "192001 Hz": (lambda: wav(rate=192_001), OutOfRange, "audio_sample_rate_out_of_range"),
    "no rate": (lambda: wav(rate=0), MalformedInput, "malformed_audio"),
    "claims ten times its bytes": (lambda: wav(data_size=480_000), MalformedInput, "truncated_audio"),
    "claims 4 GB": (lambda: wav(data_size=0xFFFFFFF0), MalformedInput, "truncated_audio"),
    "not a number": (lambda: not_finite(float("nan")), MalformedInput, "audio_not_finite"),
    "infinite": (lambda: not_finite(float("-inf")), MalformedInput, "audio_not_finite"),
    "601 s": (lambda: wav(samples=bytes(2 * 8_000 * 601), rate=8_000), TooLarge, "audio_too_long"),
    "two hours of flac": (lambda: flac_bomb(7_200), TooLarge, "audio_too_long"),
    "an hour of webm": (lambda: webm_bomb(3_600), TooLarge, "audio_too_long"),
    "too many bytes": (lambda: bytes(LIMITS.max_audio_bytes + 1), TooLarge, "audio_too_large"),
}

IMAGES: dict[str, tuple[Callable[[], bytes], type[FlashHeadError], str]] = {
    "empty": (lambda: b"", MalformedInput, "empty_image"),
    "signature alone": (lambda: b"\x89PNG\r\n\x1a\n", MalformedInput, "malformed_image"),
    "jpeg signature and noise": (lambda: b"\xff\xd8\xff" + NOISE, MalformedInput, "malformed_image"),
    "webp signature and noise": (
        lambda: b"RIFF\xff\xff\0\0WEBP" + NOISE,
        MalformedInput,
        "malformed_image",
    ),
    "png with a lying checksum": (
        lambda: picture()[:20] + b"\xff" + picture()[21:],
        MalformedInput,
        "malformed_image",
    ),
    "text packed into it": (png_text_bomb, MalformedInput, "malformed_image"),
    "wav": (sound, UnsupportedMedia, "not_image"),
    "text": (lambda: TEXT, UnsupportedMedia, "not_image"),
    "svg": (lambda: SVG, UnsupportedMedia, "not_image"),
    "gif": (lambda: picture("GIF"), UnsupportedMedia, "not_image"),
    "bmp": (lambda: picture("BMP"), UnsupportedMedia, "not_image"),
    "tiff": (lambda: picture("TIFF"), UnsupportedMedia, "not_image"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", UnsupportedMedia, "not_image"),
    "one pixel": (lambda: picture(size=(1, 1)), OutOfRange, "image_too_small"),
    "63 pixels": (lambda: picture(size=(63, 500)), OutOfRange, "image_too_small"),
    "8000 x 8000 pixels": (lambda: png_bomb(8_000), TooLarge, "image_too_many_pixels"),
    "65000 x 65000 pixels": (lambda: png_bomb(64_000), TooLarge, "image_too_many_pixels"),
    "too many bytes": (lambda: bytes(LIMITS.max_image_bytes + 1), TooLarge, "image_too_large"),
}


@pytest.mark.parametrize("name", AUDIO)
def test_audio(name: str) -> None:
    make, kind, code = AUDIO[name]
    data = make()
    started = time.monotonic()
    with pytest.raises(kind) as refused:
        decode_audio(data, LIMITS)
    assert refused.value.code == code
    assert 400 <= refused.value.status < 500
    assert time.monotonic() - started < QUICKLY_S


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    make, kind, code = IMAGES[name]
    data = make()
    started = time.monotonic()
    with pytest.raises(kind) as refused:
        decode_portrait(data, 64, 64, False, LIMITS)
    assert refused.value.code == code
    assert 400 <= refused.value.status < 500
    assert time.monotonic() - started < QUICKLY_S


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.85])
@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_clip_is_malformed(name: str, part: float) -> None:
    with pytest.raises(MalformedInput):
        decode_audio(cut(encoded(KINDS[name], speech_like(48_000, seconds=4), 48_000), part), LIMITS)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_portrait_is_malformed(kind: str, part: float) -> None:
    with pytest.raises(MalformedInput):
        decode_portrait(cut(picture(kind), part), 64, 64, False, LIMITS)


def test_what_was_found_and_what_is_accepted_are_named() -> None:
    with pytest.raises(OutOfRange) as refused:
        decode_audio(wav(channels=9), LIMITS)
    assert (refused.value.value, refused.value.accepted) == (9, [1, 8])
    with pytest.raises(TooLarge) as long:
        decode_audio(wav(), Limits(max_audio_s=0.5))
    assert (long.value.value, long.value.accepted) == (1.0, 0.5)
