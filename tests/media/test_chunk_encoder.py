"""Chunks are encoded statelessly: same bytes anywhere, sound that joins, colours that come back."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace

import av
import numpy as np
import pytest

from serve_app.config import VideoSettings
from serve_app.media import opus
from serve_app.media.chunk_encoder import CRF, ChunkEncoder
from serve_app.media.webm import webm_header
from serve_app.types import EncodeJob

from media.clips import encode_clip, jobs, moving_pattern, speech48, sweep, yuv_frames

SIZE = (64, 96)
BOUNDARY_SAMPLES = 960


def encoder(**video: int) -> ChunkEncoder:
    return ChunkEncoder(VideoSettings.model_validate(video), *SIZE)


def job(frame_count: int = 24, start_ms: int = 960) -> EncodeJob:
    pcm = sweep((start_ms + 40 * frame_count + 40) * 48)
    every = [*jobs(pcm, frame_count)]
    return next(one for one in every if one.start_ms == start_ms)


def frames(count: int = 24) -> np.ndarray:
    return yuv_frames(moving_pattern(*SIZE), 0, count)


@pytest.mark.parametrize("frame_count", [1, 2, 24, 28, 33])
def test_the_same_bytes_every_time(frame_count: int) -> None:
    pictures = frames(frame_count)
    work = job(frame_count, start_ms=40 * frame_count)
    assert encoder().encode(pictures, work) == encoder().encode(pictures, work)


def test_the_same_bytes_in_another_process() -> None:
    program = (
        "import sys; from media.test_chunk_encoder import *; "
        "sys.stdout.buffer.write(encoder().encode(frames(), job()))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], env=_environment(), capture_output=True, check=True
    )
    assert other.stdout == encoder().encode(frames(), job())


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_read_only_arrays_are_taken_and_left_alone() -> None:
    pictures, work = frames(), job()
    before = pictures.copy()
    pictures.flags.writeable = work.pcm48.flags.writeable = False
    assert encoder().encode(pictures, work) == encoder().encode(before, work)
    assert np.array_equal(pictures, before)


def test_a_chunk_depends_on_nothing_before_its_context() -> None:
    """The same picture and sound at another time differ in their times alone."""
    pcm = np.tile(sweep(9600), 60)[: 3 * 48_000]
    first, second = (one for one in [*jobs(pcm, 5)][1:4:2])
    assert np.array_equal(first.pcm48, second.pcm48)
    pictures = frames(5)
    clusters = [encoder().encode(pictures, one) for one in (first, second)]
    assert packets(clusters[0]) == packets(clusters[1])


def packets(cluster: bytes) -> list[bytes]:
    with av.open(io.BytesIO(webm_header(*SIZE) + cluster)) as container:
        return [bytes(packet) for packet in container.demux() if packet.size]


def test_a_chunk_begins_with_its_only_key_frame_and_is_complete() -> None:
    data = webm_header(*SIZE) + encoder().encode(frames(), replace(job(), final=False))
    with av.open(io.BytesIO(data)) as container:
        video = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.pts for packet in video] == [960 + 40 * index for index in range(24)]
    assert [packet.is_keyframe for packet in video] == [True] + [False] * 23
    with av.open(io.BytesIO(data)) as container:
        assert sum(1 for packet in container.demux(audio=0) if packet.size) == 48


@pytest.mark.parametrize(("size", "crf"), [((256, 256), 4), ((256, 272), 28)])
def test_quality_follows_the_size_of_the_picture(size: tuple[int, int], crf: int) -> None:
    pictures = yuv_frames(moving_pattern(*size), 0, 24)
    asked, other = (
        ChunkEncoder(VideoSettings(crf=each), *size).encode(pictures, job()) for each in (crf, 16)
    )
    assert ChunkEncoder(VideoSettings(), *size).encode(pictures, job()) == asked
    assert asked != other


def test_a_chunk_too_large_is_encoded_again_coarser() -> None:
    noise = np.random.default_rng(0).integers(16, 236, frames().shape).astype(np.uint8)
    coarse = encoder(crf=36).encode(noise, job())
    assert encoder(crf=28, max_cluster_bytes=10_000).encode(noise, job()) == coarse
    assert len(coarse) < len(encoder(crf=28, max_cluster_bytes=10**9).encode(noise, job()))


@pytest.mark.parametrize(
    ("pictures", "work", "said"),
    [
        (frames(23), job(24), "expected (24, 96, 96) uint8"),
        (frames(24).astype(np.float32), job(24), "float32"),
        (yuv_frames(moving_pattern(64, 64), 0, 24), job(24), "expected (24, 96, 96)"),
        (None, job(24), "no frames"),
        (frames(34), job(34, start_ms=0), "0 to 33"),
        (frames(24), replace(job(24), pcm48=np.zeros(4800, np.float32)), "pcm48"),
        (frames(24), replace(job(24), pcm48=job(24).pcm48.astype(np.float64)), "pcm48"),
        (frames(24), replace(job(24), start_ms=970), "multiples of 40"),
        (frames(24), replace(job(24), start_ms=-40), "multiples of 40"),
        (frames(24), replace(job(24), valid_samples=100), "valid_samples=100"),
        (frames(24), replace(job(24), valid_samples=10**6, final=True), "valid_samples=1000000"),
        (None, EncodeJob(0, 0, np.zeros(4800, np.float32), 0, final=False), "final must be true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frames_and_job_must_fit(pictures: np.ndarray | None, work: EncodeJob, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        encoder().encode(pictures, work)
    assert said in str(refused.value)


# Sound: packets of fresh encoders must decode like those of one that never stopped.


def continuous_packets(pcm48: np.ndarray) -> list[bytes]:
    context = av.CodecContext.create("libopus", "w")
    context.sample_rate, context.format, context.layout, context.bit_rate = 48_000, "flt", "mono", 96_000
    context.options = {"vbr": "off", "application": "lowdelay", "frame_duration": "20"}
    made = []
    for start in range(0, len(pcm48), 960):
        frame = av.AudioFrame.from_ndarray(pcm48[np.newaxis, start : start + 960], "flt", "mono")
        frame.sample_rate, frame.pts = 48_000, start
        made += [bytes(packet) for packet in context.encode(frame)]
    return made


def stateless_packets(pcm48: np.ndarray, chunk_frames: int) -> list[bytes]:
    work = [replace(one, final=False) for one in jobs(pcm48, chunk_frames)]
    return [packet for one in work for packet in opus.encode_chunk(one)[0]]


def decoded(sound: list[bytes]) -> np.ndarray:
    """Aligned with what was encoded."""
    context = av.CodecContext.create("libopus", "r")
    context.sample_rate, context.layout, context.format = 48_000, "mono", "flt"
    blocks = [frame.to_ndarray().ravel() for packet in sound for frame in context.decode(av.Packet(packet))]
    return np.concatenate(blocks)[opus.PRE_SKIP_SAMPLES :] / 32768


def decibels(signal: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(signal, dtype=np.float64)) + 1e-20))


def after_boundaries(signal: np.ndarray, chunk_frames: int) -> np.ndarray:
    """``[boundaries, 960]``: the 20 ms after each seam between chunks."""
    step = 1920 * chunk_frames
    return np.stack(
        [signal[at : at + BOUNDARY_SAMPLES] for at in range(step, len(signal) - BOUNDARY_SAMPLES, step)]
    )


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    pcm = speech48()
    return pcm[: len(pcm) // 1920 * 1920]


@pytest.mark.parametrize("chunk_frames", [1, 3, 24, 28])
def test_sound_joins_without_a_seam(speech: np.ndarray, chunk_frames: int) -> None:
    whole, joined = decoded(continuous_packets(speech)), decoded(stateless_packets(speech, chunk_frames))
    assert whole.shape == joined.shape
    error = after_boundaries(whole - joined, chunk_frames)
    assert decibels(error) < -48
    assert np.abs(error).max() < 0.04
    said = after_boundaries(speech[: len(whole)], chunk_frames)
    fidelity = [
        decibels(said) - decibels(said - after_boundaries(one, chunk_frames)) for one in (whole, joined)
    ]
    assert fidelity[1] > fidelity[0] - 0.2


def test_without_context_the_seam_would_be_heard(speech: np.ndarray) -> None:
    """The measure of the test above does see a seam where there is one."""
    step = 24 * 1920
    cold = [p for at in range(0, len(speech), step) for p in continuous_packets(speech[at : at + step])]
    error = after_boundaries(decoded(continuous_packets(speech)) - decoded(cold), 24)
    assert decibels(error) > -40


def test_the_start_is_that_of_a_continuous_encoder(speech: np.ndarray) -> None:
    """Up to 100 ms there is nothing before the chunk's context, so even the bytes agree."""
    whole = continuous_packets(speech)
    assert stateless_packets(speech[: 24 * 1920], 24) == whole[:48]
    assert stateless_packets(speech[: 3 * 1920], 1) == whole[:6]


# Colour


def test_colours_come_back() -> None:
    """Flat patches through VP9 at the coarser default, as a player that honours the tags shows them."""
    rgb = np.random.default_rng(3).integers(0, 256, (16, 3))
    side = 64
    patches = np.kron(rgb.reshape(4, 4, 3), np.ones((side, side, 1)))
    pictures = np.repeat(yuv420p(patches)[np.newaxis], 24, axis=0)
    work = job(24, start_ms=0)
    cluster = ChunkEncoder(VideoSettings(crf=CRF), 4 * side, 4 * side).encode(pictures, work)
    with av.open(io.BytesIO(webm_header(4 * side, 4 * side) + cluster)) as container:
        shown = [frame.to_ndarray() for frame in container.decode(video=0)]
    for planes in (shown[0], shown[-1]):
        back = rgb_of(planes.reshape(-1), 4 * side)
        middles = back[side // 2 :: side, side // 2 :: side].reshape(16, 3)
        assert np.abs(middles - rgb).max() <= 3
        assert np.abs(middles - rgb).mean() <= 1


def yuv420p(rgb: np.ndarray) -> np.ndarray:
    """BT.601, limited range; chroma is the mean of 2x2 pixels."""
    red, green, blue = np.moveaxis(rgb / 255, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [(blue - luma) / 1.772, (red - luma) / 1.402]
    small = [one.reshape(one.shape[0] // 2, 2, -1, 2).mean((1, 3)) for one in chroma]
    planes = [16 + 219 * luma, *(128 + 224 * one for one in small)]
    flat = np.concatenate([np.rint(plane).ravel() for plane in planes])
    return flat.astype(np.uint8).reshape(-1, rgb.shape[1])


def rgb_of(planes: np.ndarray, side: int) -> np.ndarray:
    luma, quarter = planes[: side * side].astype(float), side * side // 4
    blue, red = (
        np.kron(planes[side * side + i * quarter :][:quarter].reshape(side // 2, -1) - 128.0, np.ones((2, 2)))
        for i in (0, 1)
    )
    y = (luma.reshape(side, side) - 16) / 219
    cb, cr = blue / 224, red / 224
    channels = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    return np.rint(255 * np.clip(np.stack(channels, -1), 0, 1))


def test_a_clip_of_another_chunk_length_has_the_same_pictures() -> None:
    pcm = sweep(28 * 1920)
    for chunk_frames in (7, 28):
        clusters = encode_clip(pcm, moving_pattern(*SIZE), chunk_frames)
        with av.open(io.BytesIO(webm_header(*SIZE) + b"".join(clusters))) as container:
            shown = [frame.to_ndarray()[: SIZE[0]] for frame in container.decode(video=0)]
        wanted = [moving_pattern(*SIZE)(index) for index in range(28)]
        assert decibels((np.stack(shown).astype(float) - np.stack(wanted)) / 255) < -34
