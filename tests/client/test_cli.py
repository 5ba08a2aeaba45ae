"""The command line: what it makes, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.cli import main
from serve_app.media.webm_reader import ClusterReader

from api.conftest import FakeBackend, serving
from session.fakes import FULL

ROOT = Path(__file__).parents[2]
PORTRAIT, SPEECH = ROOT / "examples" / "portrait.png", ROOT / "examples" / "speech.wav"


def animate(out: Path, *more: Any, image: Path = PORTRAIT, audio: Path = SPEECH) -> int:
    words = ["animate", "--image", image, "--audio", audio, "--out", out, *more]
    return main([str(word) for word in words])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors


def test_it_animates_in_its_own_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new folder" / "video.webm"
    assert animate(out) == 0
    video = out.read_bytes()
    output = capsys.readouterr()
    assert "202 frames (8.08 s of video)" in output.out and "x real time" in output.out
    assert "202/202" in output.err and "x real time" in output.err
    assert video[:4] == b"\x1a\x45\xdf\xa3" and b"\x1c\x53\xbb\x6b" in video


def test_it_makes_mp4(tmp_path: Path) -> None:
    out = tmp_path / "video.mp4"
    assert animate(out, "--audio-encode", "once", "--face-crop", "--seed", 7) == 0
    assert out.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("changed", "more", "named"),
    [
        ({"image": Path("nowhere.png")}, [], "nowhere.png"),
        ({"audio": Path("nowhere.wav")}, [], "nowhere.wav"),
        ({"image": SPEECH}, [], "PNG, JPEG or WebP"),
        ({}, ["--model", "huge"], "known: tiny, lite, pro, pretrained"),
        ({}, ["--steps", "7"], "accepted: [2, 3, 4]"),
        ({}, ["--model", "lite", "--checkpoint", "/nowhere"], "missing"),
        ({}, ["--model", "pretrained"], "never released"),
        ({}, ["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Path],
    more: list[str],
    named: str,
) -> None:
    out = tmp_path / "video.webm"
    assert animate(out, *more, **changed) == 1
    assert named in said(capsys)
    assert not out.exists()


def test_a_name_that_says_no_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert animate(tmp_path / "video.avi") == 1
    assert ".webm or .mp4" in said(capsys)


def test_a_server_that_refuses_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = FakeBackend()
    backend.generator.open_faults = [FULL]
    seconds = tmp_path / "speech.wav"
    seconds.write_text("3.0")
    with serving(backend) as url:
        assert animate(tmp_path / "video.webm", "--url", url, audio=seconds) == 1
    assert "429 at_capacity" in said(capsys)


def test_a_demo_does_not_mistake_another_server_for_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeBackend()) as url:
        files = ["--image", str(PORTRAIT), "--audio", str(SPEECH), "--out", str(tmp_path / "demo.webm")]
        config = ["--config", str(ROOT / "configs" / "serve.yaml"), "--port", url.rpartition(":")[2]]
        assert main(["demo", *files, *config]) == 1
    assert "taken by another server" in said(capsys)


def test_check_weights_says_what_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check-weights", str(ROOT / "serve_app" / "checkpoints" / "tiny")]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["check-weights", str(tmp_path)]) == 1
    assert "missing" in capsys.readouterr().out


def test_check_weights_wants_every_model_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = str(ROOT / "serve_app" / "checkpoints" / "tiny")
    assert main(["check-weights", tiny, "--models", "tiny"]) == 0
    assert main(["check-weights", tiny, "--models", "tiny,pro"]) == 1
    assert "lite" not in capsys.readouterr().out
    assert main(["check-weights", tiny, "--models", "tyni"]) == 1
    assert "tyni" in said(capsys)


def test_a_reader_counts_what_a_stream_holds(tmp_path: Path) -> None:
    out = tmp_path / "video.webm"
    assert animate(out) == 0
    reader = ClusterReader()
    video = out.read_bytes()
    for start in range(0, len(video), 1000):
        reader.feed(video[start : start + 1000])
    assert (reader.frame_count, reader.height, reader.width) == (202, 128, 128)
    assert reader.valid_samples == pytest.approx(8.05 * 48_000, abs=480)
