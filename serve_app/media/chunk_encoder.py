"""One chunk's frames and sound to bytes: a WebM cluster, or the samples an MP4 file is made of later.

Stateless: the same frames and job give the same bytes in any process, so a chunk can be encoded
anywhere and again.
"""

from __future__ import annotations

import numpy as np

from serve_app.config import VideoSettings
from serve_app.media import opus
from serve_app.media.mp4 import finalise_mp4, pack_samples
from serve_app.media.video_codecs import encode_h264, encode_vp9
from serve_app.media.webm import AUDIO_TRACK, VIDEO_TRACK, Block, webm_cluster
from serve_app.types import ENCODER_CONTEXT_SAMPLES, FRAME_MS, LISTENER_SAMPLES_PER_FRAME, EncodeJob

__all__ = ["ChunkEncoder", "finalise_mp4"]

MAX_FRAMES = 33
SMALL_PIXELS, SMALL_CRF, CRF = 256 * 256, 4, 28
"""Pictures up to so many pixels cost little (a chunk of a photograph that moves, 256x256, 150 kB), and are
shown enlarged. At 28 what moves in them by less than a grey level stands still within a chunk and is made
good at the next one's key frame, for all to see: the embedded model's frames change 4.0 times as much there
as elsewhere, at 4 1.8 times (the example portrait and speech)."""
SMALLER_CRF_STEP = 8
"""Added to crf for a chunk whose cluster came out too large: roughly half the bytes."""


class ChunkEncoder:
    """Encodes chunks of ``height`` x ``width`` frames. Keeps nothing between calls; threads may share it.

    Where ``video`` gives no ``crf``, it is ``SMALL_CRF`` for up to ``SMALL_PIXELS`` and ``CRF`` beyond.
    """

    def __init__(self, video: VideoSettings, height: int, width: int) -> None:
        self._video = video
        default = SMALL_CRF if height * width <= SMALL_PIXELS else CRF
        self._crf = default if video.crf is None else video.crf
        self._frame_shape = (height * 3 // 2, width)

    def encode(self, frames: np.ndarray | None, job: EncodeJob) -> bytes:
        """The chunk's WebM cluster, or for ``container="mp4"`` its samples (``mp4.pack_samples``).

        ``frames`` is ``[job.frame_count, height * 3 // 2, width]`` uint8 yuv420p in limited range, possibly
        read-only; ``None`` for the closing cluster that holds sound alone (``frame_count`` 0).

        Raises:
            ValueError: frames and job do not fit each other or this encoder.
        """
        self._check_frames(frames, job.frame_count)
        _check_sound(job)
        if job.container == "mp4":
            return pack_samples(job.start_ms // FRAME_MS, encode_h264(frames) if frames is not None else [])
        sound = _sound_blocks(job)
        cluster = self._cluster(frames, job.start_ms, sound, self._crf)
        if frames is not None and len(cluster) > self._video.max_cluster_bytes:
            cluster = self._cluster(frames, job.start_ms, sound, self._crf + SMALLER_CRF_STEP)
        return cluster

    def _cluster(self, frames: np.ndarray | None, start_ms: int, sound: list[Block], crf: int) -> bytes:
        pictures = encode_vp9(frames, crf, self._video.cpu_used) if frames is not None else []
        blocks = [
            Block(VIDEO_TRACK, start_ms + index * FRAME_MS, picture, key=index == 0)
            for index, picture in enumerate(pictures)
        ]
        return webm_cluster(start_ms, [*blocks, *sound])

    def _check_frames(self, frames: np.ndarray | None, frame_count: int) -> None:
        if not 0 <= frame_count <= MAX_FRAMES:
            raise ValueError(f"frame_count={frame_count}; a chunk has 0 to {MAX_FRAMES} frames")
        if frames is None:
            if frame_count != 0:
                raise ValueError(f"no frames were given for frame_count={frame_count}")
            return
        expected = (frame_count, *self._frame_shape)
        if frame_count == 0 or frames.shape != expected or frames.dtype != np.uint8:
            raise ValueError(
                f"frames are {frames.shape} {frames.dtype}; expected {expected} uint8, not empty"
            )


def _check_sound(job: EncodeJob) -> None:
    chunk_samples = LISTENER_SAMPLES_PER_FRAME * job.frame_count
    expected = (ENCODER_CONTEXT_SAMPLES + chunk_samples,)
    if job.pcm48.shape != expected or job.pcm48.dtype != np.float32:
        raise ValueError(f"pcm48 is {job.pcm48.shape} {job.pcm48.dtype}; expected {expected} float32")
    if job.start_ms < 0 or job.start_ms % FRAME_MS:
        raise ValueError(f"start_ms={job.start_ms}; chunks start at multiples of {FRAME_MS} ms")
    least = 0 if job.final else chunk_samples
    if not least <= job.valid_samples <= chunk_samples:
        raise ValueError(f"valid_samples={job.valid_samples}; expected {least} to {chunk_samples}")
    if job.frame_count == 0 and not job.final:
        raise ValueError("a chunk without frames closes a stream; final must be true")


def _sound_blocks(job: EncodeJob) -> list[Block]:
    packets, discard = opus.encode_chunk(job)
    last = len(packets) - 1
    return [
        Block(
            AUDIO_TRACK,
            job.start_ms + index * opus.PACKET_MS,
            packet,
            key=True,
            discard_samples=discard if index == last else 0,
        )
        for index, packet in enumerate(packets)
    ]
