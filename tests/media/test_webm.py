"""The WebM that is written: its bytes, its tables, and what ffprobe, ffmpeg and mkvtoolnix say of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from serve_app.config import VideoSettings
from serve_app.errors import MalformedInput
from serve_app.media import ebml
from serve_app.media.chunk_encoder import ChunkEncoder
from serve_app.media.webm import finalise_webm, webm_header
from serve_app.media.webm_reader import ClusterReader

from media.clips import closing_job, encode_clip, flat, jobs, moving_pattern, sweep, yuv_frames
from media.programs import ffmpeg_frames, ffmpeg_samples, needs, run

SIZE = (96, 128)
CHUNK_SAMPLES = 24 * 1920
TAILS = {
    "inside a chunk": CHUNK_SAMPLES + 12_345,
    "exact edge of a chunk": 2 * CHUNK_SAMPLES,
    "codec delay spills past the chunk": 2 * CHUNK_SAMPLES - 50,
    "codec delay just fits": 2 * CHUNK_SAMPLES - 120,
    "one sample in a chunk of its own": 2 * CHUNK_SAMPLES + 1,
    "one packet less than the frame": CHUNK_SAMPLES + 700,
    "edge of a packet": CHUNK_SAMPLES + 960,
}


def streamed(clusters: list[bytes]) -> bytes:
    return webm_header(*SIZE) + b"".join(clusters)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 16_382, 16_383, 2_097_150, 2**32])
def test_sizes_read_back(size: int) -> None:
    head = ebml.identity_bytes(ebml.CLUSTER) + ebml.size_bytes(size)
    assert ebml.element_at(head, 0) == (ebml.CLUSTER, len(head), len(head) + size)


def test_a_size_is_never_the_unknown_one() -> None:
    for length in range(1, 5):
        assert len(ebml.size_bytes(2 ** (7 * length) - 2)) == length
        assert len(ebml.size_bytes(2 ** (7 * length) - 1)) == length + 1


@pytest.mark.parametrize("value", [0, 1, 127, 128, 17_500_000, -1, -128, -129])
def test_signed_numbers_read_back(value: int) -> None:
    data = ebml.signed(ebml.DISCARD_PADDING, value)
    _, start, end = ebml.element_at(data, 0) or (0, 0, 0)
    assert int.from_bytes(data[start:end], "big", signed=True) == value


def test_header_is_a_constant_for_a_size() -> None:
    assert webm_header(512, 512) == webm_header(512, 512)
    assert webm_header(512, 512) != webm_header(512, 256)


@pytest.mark.parametrize("samples", TAILS.values(), ids=TAILS.keys())
def test_reader_finds_what_was_written(samples: int) -> None:
    clusters = encode_clip(sweep(samples), moving_pattern(*SIZE))
    reader = ClusterReader()
    data = streamed(clusters)
    for start in range(0, len(data), 1000):
        reader.feed(data[start : start + 1000])
    assert reader.clusters == clusters
    assert (reader.height, reader.width) == SIZE
    assert reader.frame_count == -(-samples // 1920)
    assert reader.valid_samples == samples


def test_finished_file_holds_the_same_clusters() -> None:
    samples = 3 * CHUNK_SAMPLES + 77
    clusters = encode_clip(sweep(samples), moving_pattern(*SIZE))
    data = finalise_webm(*SIZE, clusters, samples)
    assert data.endswith(b"".join(clusters))
    assert data == finalise_webm(*SIZE, clusters, samples)


def test_index_points_at_the_clusters() -> None:
    samples = 3 * CHUNK_SAMPLES
    clusters = [*encode_clip(sweep(samples), moving_pattern(*SIZE))]
    data = finalise_webm(*SIZE, clusters, samples)
    _, head_end = element_range(data, 0)
    start, end = element_range(data, head_end)
    assert end == len(data)
    tables = {identity: (first, last) for identity, first, last in ebml.children(data, start, end)}
    positions = cue_positions(data, *tables[ebml.CUES])
    assert [start + position for position in positions] == [data.index(cluster) for cluster in clusters]
    for identity, position in seek_entries(data, *tables[ebml.SEEK_HEAD]):
        found = ebml.element_at(data, start + position)
        assert found is not None and found[0] == identity


def element_range(data: bytes, at: int) -> tuple[int, int]:
    found = ebml.element_at(data, at)
    assert found is not None
    return found[1], found[2]


def cue_positions(data: bytes, start: int, end: int) -> list[int]:
    positions = []
    for _, first, last in ebml.children(data, start, end):
        for identity, begin, finish in ebml.children(data, first, last):
            if identity == ebml.CUE_TRACK_POSITIONS:
                children = {c: data[b:f] for c, b, f in ebml.children(data, begin, finish)}
                positions.append(int.from_bytes(children[ebml.CUE_CLUSTER_POSITION], "big"))
    return positions


def seek_entries(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    entries = []
    for _, first, last in ebml.children(data, start, end):
        children = {c: int.from_bytes(data[b:f], "big") for c, b, f in ebml.children(data, first, last)}
        entries.append((children[ebml.SEEK_ID], children[ebml.SEEK_POSITION]))
    return entries


def test_nothing_to_finish_is_refused() -> None:
    with pytest.raises(ValueError, match="clusters is empty"):
        finalise_webm(*SIZE, [], 0)


def test_reader_refuses_what_is_no_webm() -> None:
    with pytest.raises(MalformedInput):
        ClusterReader().feed(b"\0" * 100)


@needs("ffprobe", "ffmpeg")
@pytest.mark.parametrize("samples", TAILS.values(), ids=TAILS.keys())
def test_ffmpeg_decodes_exactly_the_samples_and_frames(tmp_path: Path, samples: int) -> None:
    clusters = encode_clip(sweep(samples), moving_pattern(*SIZE))
    live = write(tmp_path / "live.webm", streamed(clusters))
    batch = write(tmp_path / "batch.webm", finalise_webm(*SIZE, clusters, samples))
    for path in (live, batch):
        assert len(ffmpeg_samples(path)) == samples
        assert len(ffmpeg_frames(path, *SIZE)) == -(-samples // 1920)
    probed = run("ffprobe", "-v", "warning", "-of", "json", "-show_format", "-show_streams", batch)
    assert probed.stderr == b""
    said = json.loads(probed.stdout)
    assert float(said["format"]["duration"]) == pytest.approx(-(-samples // 1920) * 0.04, abs=1e-6)
    assert {stream["codec_name"] for stream in said["streams"]} == {"vp9", "opus"}
    video = next(stream for stream in said["streams"] if stream["codec_type"] == "video")
    assert (video["color_space"], video["color_range"]) == ("smpte170m", "tv")
    assert (video["color_primaries"], video["color_transfer"]) == ("bt709", "bt709")


@needs("mkvmerge", "mkvinfo")
@pytest.mark.parametrize("samples", [TAILS["inside a chunk"], TAILS["exact edge of a chunk"]])
def test_mkvtoolnix_takes_both_kinds_without_a_warning(tmp_path: Path, samples: int) -> None:
    clusters = encode_clip(sweep(samples), moving_pattern(*SIZE))
    for name, data in (
        ("live", streamed(clusters)),
        ("batch", finalise_webm(*SIZE, clusters, samples)),
    ):
        path = write(tmp_path / f"{name}.webm", data)
        merged = run("mkvmerge", "--webm", "-o", tmp_path / "merged.webm", path)
        assert merged.returncode == 0, merged.stdout
        assert b"warning" not in merged.stdout.lower()
        read = run("mkvinfo", "-v", "-v", path)
        assert read.returncode == 0
        assert b"unknown" not in read.stdout.lower().replace(b"size unknown", b"")


@needs("ffmpeg", "mkvmerge")
def test_a_closing_cluster_ends_the_stream_to_the_sample(tmp_path: Path) -> None:
    """The end came after a full chunk had been sent: one more cluster, sound only."""
    pcm = sweep(2 * CHUNK_SAMPLES)
    encoder, picture = ChunkEncoder(VideoSettings(), *SIZE), moving_pattern(*SIZE)
    clusters = [
        encoder.encode(yuv_frames(picture, job.start_ms // 40, 24), replace(job, final=False))
        for job in jobs(pcm)
    ]
    clusters.append(encoder.encode(None, closing_job(pcm)))
    for name, data in (
        ("live", streamed(clusters)),
        ("batch", finalise_webm(*SIZE, clusters, len(pcm))),
    ):
        path = write(tmp_path / f"{name}.webm", data)
        assert len(ffmpeg_samples(path)) == len(pcm)
        assert len(ffmpeg_frames(path, *SIZE)) == 48
        merged = run("mkvmerge", "--webm", "-o", tmp_path / "merged.webm", path)
        assert merged.returncode == 0, merged.stdout
    spilled = encode_clip(pcm, picture)
    assert decoded_sound(streamed(clusters)) == pytest.approx(decoded_sound(streamed(spilled)), abs=1e-6)


def decoded_sound(data: bytes) -> np.ndarray:
    import io

    with av.open(io.BytesIO(data)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def flash_and_click(minutes: int) -> tuple[list[bytes], int]:
    """A 1 ms click and a white frame at each whole second."""
    pcm = np.zeros(minutes * 60 * 48_000, np.float32)
    for sample in range(48):
        pcm[sample::48_000] = 0.8 * (1 - sample / 48)
    picture = flat(32, 32, lambda index: 235 if index % 25 == 0 else 16)
    return encode_clip(pcm, picture), len(pcm)


@pytest.mark.parametrize("minutes", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_sound_and_picture_stay_in_step_to_the_sample(tmp_path: Path, minutes: int) -> None:
    clusters, samples = flash_and_click(minutes)
    path = write(tmp_path / "long.webm", finalise_webm(32, 32, clusters, samples))
    with av.open(str(path)) as container:
        frames = [(frame.pts, frame.to_ndarray()[:32].mean()) for frame in container.decode(video=0)]
    assert [pts for pts, _ in frames] == list(range(0, samples // 48, 40))
    assert {pts % 1000 for pts, luma in frames if luma > 126} == {0}
    assert sum(luma > 126 for _, luma in frames) == minutes * 60
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(sound) == samples
    seconds = np.abs(sound).reshape(-1, 48_000)
    assert set(np.argmax(seconds, axis=1)) == {int(np.argmax(seconds[0]))}
    assert int(np.argmax(seconds[0])) <= 2
