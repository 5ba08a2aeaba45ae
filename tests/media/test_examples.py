"""What ships as an example is what its README says."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from PIL import Image

from serve_app.config import Limits
from serve_app.media.audio_decode import decode_audio
from serve_app.media.portrait import decode_portrait

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["portrait.png", "speech.wav"])
def test_examples_are_small(name: str) -> None:
    assert (EXAMPLES / name).stat().st_size < 400_000


def test_the_portrait() -> None:
    with Image.open(EXAMPLES / "portrait.png") as image:
        assert (image.size, image.mode) == ((512, 512), "RGB")
    assert decode_portrait((EXAMPLES / "portrait.png").read_bytes(), 512, 512, True, Limits()).warnings == ()


def test_the_speech() -> None:
    said = soundfile.info(EXAMPLES / "speech.wav")
    assert (said.samplerate, said.channels, said.subtype) == (24_000, 1, "PCM_16")
    assert 6 < said.duration < 9
    heard = decode_audio((EXAMPLES / "speech.wav").read_bytes(), Limits())
    assert len(heard.pcm48) == 2 * said.frames
