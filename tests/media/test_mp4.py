"""The MP4 file: index in front, exact times, sound and picture in step."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from serve_app.config import VideoSettings
from serve_app.media.chunk_encoder import ChunkEncoder, finalise_mp4
from serve_app.media.mp4 import pack_samples, unpack_samples

from media.clips import closing_job, encode_clip, flat, moving_pattern, sweep
from media.programs import ffmpeg_frames, ffmpeg_samples, needs, run

SIZE = (96, 128)
AAC_FRAME_SAMPLES = 1024


def clip(samples: int) -> bytes:
    pcm = sweep(samples)
    chunks = encode_clip(pcm, moving_pattern(*SIZE), container="mp4")
    return finalise_mp4(*SIZE, chunks, pcm)


def boxes(data: bytes) -> list[bytes]:
    """Names of the boxes at the top, in order."""
    at, names = 0, []
    while at < len(data):
        names.append(data[at + 4 : at + 8])
        at += struct.unpack_from(">I", data, at)[0]
    return names


def test_samples_come_out_of_a_chunk_as_they_went_in() -> None:
    samples = [b"key", b"", b"delta" * 100]
    assert [*unpack_samples(pack_samples(48, samples))] == [
        (48, b"key", True),
        (49, b"", False),
        (50, b"delta" * 100, False),
    ]
    assert [*unpack_samples(pack_samples(7, []))] == []


def test_the_same_bytes_every_time() -> None:
    assert clip(50_000) == clip(50_000)


def test_the_index_comes_first() -> None:
    names = boxes(clip(50_000))
    assert names.index(b"moov") < names.index(b"mdat")


def test_no_picture_is_refused() -> None:
    closing = ChunkEncoder(VideoSettings(), *SIZE).encode(None, mp4_closing())
    with pytest.raises(ValueError, match="no picture"):
        finalise_mp4(*SIZE, [closing], sweep(0))


def mp4_closing() -> object:
    from dataclasses import replace

    return replace(closing_job(sweep(0)), container="mp4")


@needs("ffprobe", "ffmpeg")
@pytest.mark.parametrize("samples", [1, 46_080, 92_160 - 50, 200_001])
def test_ffprobe_and_ffmpeg_agree(tmp_path: Path, samples: int) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip(samples))
    probed = run("ffprobe", "-v", "warning", "-of", "json", "-show_streams", "-count_frames", path)
    assert probed.stderr == b""
    video, audio = json.loads(probed.stdout)["streams"]
    frame_count = -(-samples // 1920)
    assert (video["codec_name"], audio["codec_name"]) == ("h264", "aac")
    assert (video["nb_read_frames"], video["r_frame_rate"]) == (str(frame_count), "25/1")
    assert (video["start_time"], audio["start_time"]) == ("0.000000", "0.000000")
    assert float(video["duration"]) == pytest.approx(frame_count * 0.04, abs=1e-6)
    assert int(audio["duration_ts"]) == samples
    assert (video["color_space"], video["color_range"]) == ("smpte170m", "tv")
    assert (video["color_primaries"], video["color_transfer"]) == ("bt709", "bt709")
    assert len(ffmpeg_frames(path, *SIZE)) == frame_count
    assert 0 <= len(ffmpeg_samples(path)) - samples < AAC_FRAME_SAMPLES


def test_frames_lie_on_the_grid_and_look_right() -> None:
    data = clip(60 * 1920)
    picture = moving_pattern(*SIZE)
    with av.open(io.BytesIO(data)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            assert frame.time is not None and round(frame.time * 1000) == 40 * index
            error = frame.to_ndarray()[: SIZE[0]].astype(float) - picture(index)
            assert np.sqrt(np.mean(error**2)) < 4
    assert index == 59


def test_sound_and_picture_stay_in_step() -> None:
    """A click and a flash at each second for a minute; the encoder's priming must not shift the sound."""
    pcm = np.zeros(60 * 48_000, np.float32)
    for sample in range(96):
        pcm[24_000 + sample :: 48_000] = 0.8 * (1 - sample / 96)
    chunks = encode_clip(pcm, flat(32, 32, lambda i: 235 if i % 25 == 12 else 16), container="mp4")
    data = finalise_mp4(32, 32, chunks, pcm)
    with av.open(io.BytesIO(data)) as container:
        lumas = [frame.to_ndarray()[:32].mean() for frame in container.decode(video=0)]
    assert [index for index, luma in enumerate(lumas) if luma > 126] == [*range(12, 1500, 25)]
    with av.open(io.BytesIO(data)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    clicks = np.argmax(np.abs(sound[: len(pcm)]).reshape(-1, 48_000), axis=1)
    assert np.abs(clicks - 24_000).max() <= 16
    lag = np.argmax(np.correlate(sound[:96_000], pcm[1000:95_000], "valid")) - 1000
    assert lag == 0
