"""WebM with VP9 and Opus: the header of a live stream, its clusters, and the seekable file made of them.

Times are integers: milliseconds in blocks, nanoseconds in the tracks, 48 kHz samples at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serve_app.media import ebml, opus
from serve_app.media.video_codecs import LIMITED_RANGE, MATRIX_SMPTE170M, PRIMARIES_BT709, TRANSFER_BT709
from serve_app.types import FPS, FRAME_MS, LISTENER_RATE_HZ

VIDEO_TRACK, AUDIO_TRACK = 1, 2
VIDEO_TYPE, AUDIO_TYPE = 1, 2
NS_PER_MS, NS_PER_S = 1_000_000, 1_000_000_000
KEY_BLOCK = 0x80
SEEK_PRE_ROLL_MS = 80
"""How much Opus a player decodes before a seek target, as RFC 7845 asks."""
POSITION_BYTES = 8
"""Fixed width of positions, so that the tables in front of the clusters have a size before a content."""
APPLICATION = "FlashHead Serve"


@dataclass(frozen=True, slots=True)
class Block:
    """One compressed frame or packet of a track, at ``time_ms`` from the start of the stream.

    ``discard_samples`` at its end are padding that a player drops.
    """

    track: int
    time_ms: int
    data: bytes
    key: bool
    discard_samples: int = 0


def webm_header(height: int, width: int) -> bytes:
    """The bytes a live stream starts with; a constant for a size. Its Segment has no end."""
    segment = ebml.identity_bytes(ebml.SEGMENT) + ebml.UNKNOWN_SIZE
    return b"".join((_ebml_head(), segment, _info(), _tracks(height, width)))


def webm_cluster(start_ms: int, blocks: Iterable[Block]) -> bytes:
    """One cluster of known size; blocks in order of time, picture before sound at the same time."""
    ordered = sorted(blocks, key=lambda block: (block.time_ms, block.track))
    return ebml.element(
        ebml.CLUSTER,
        ebml.unsigned(ebml.TIMECODE, start_ms),
        *(_block(block, start_ms) for block in ordered),
    )


def finalise_webm(height: int, width: int, clusters: Sequence[bytes], valid_samples: int) -> bytes:
    """The seekable file of a finished stream: the same clusters behind an index and a duration.

    ``valid_samples`` are the 48 kHz samples a player hears, in all.

    Raises:
        ValueError: there is no cluster.
        MalformedInput: a cluster is none.
    """
    if not clusters:
        raise ValueError("clusters is empty: a file holds at least one")
    spans = [_span(cluster) for cluster in clusters]
    end_ms = max(
        max(start_ms + frames * FRAME_MS for start_ms, frames in spans),
        valid_samples * 1000 / LISTENER_RATE_HZ,
    )
    info, tracks = _info(end_ms), _tracks(height, width)
    first_cluster = len(_seek_head(0, 0, 0)) + len(info) + len(tracks) + len(_cues(clusters, spans, 0))
    cues = _cues(clusters, spans, first_cluster)
    info_at = len(_seek_head(0, 0, 0))
    seek_head = _seek_head(info_at, info_at + len(info), info_at + len(info) + len(tracks))
    return _ebml_head() + ebml.element(ebml.SEGMENT, seek_head, info, tracks, cues, *clusters)


def _block(block: Block, cluster_ms: int) -> bytes:
    head = bytes((0x80 | block.track,)) + (block.time_ms - cluster_ms).to_bytes(2, "big", signed=True)
    if block.discard_samples == 0:
        return ebml.element(ebml.SIMPLE_BLOCK, head + bytes((KEY_BLOCK if block.key else 0,)), block.data)
    padding_ns = _nanoseconds(block.discard_samples)
    return ebml.element(
        ebml.BLOCK_GROUP,
        ebml.element(ebml.BLOCK, head + b"\0", block.data),
        ebml.signed(ebml.DISCARD_PADDING, padding_ns),
    )


def _nanoseconds(samples: int) -> int:
    """To the nearest, from which a reader gets the samples back by rounding."""
    return (samples * NS_PER_S + LISTENER_RATE_HZ // 2) // LISTENER_RATE_HZ


def _ebml_head() -> bytes:
    return ebml.element(
        ebml.EBML_HEAD,
        ebml.unsigned(ebml.EBML_VERSION, 1),
        ebml.unsigned(ebml.EBML_READ_VERSION, 1),
        ebml.unsigned(ebml.EBML_MAX_ID_LENGTH, 4),
        ebml.unsigned(ebml.EBML_MAX_SIZE_LENGTH, 8),
        ebml.text(ebml.DOC_TYPE, "webm"),
        ebml.unsigned(ebml.DOC_TYPE_VERSION, 4),
        ebml.unsigned(ebml.DOC_TYPE_READ_VERSION, 2),
    )


def _info(duration_ms: float | None = None) -> bytes:
    return ebml.element(
        ebml.INFO,
        ebml.unsigned(ebml.TIMECODE_SCALE, NS_PER_MS),
        ebml.text(ebml.MUXING_APP, APPLICATION),
        ebml.text(ebml.WRITING_APP, APPLICATION),
        ebml.double(ebml.DURATION, duration_ms) if duration_ms is not None else b"",
    )


def _tracks(height: int, width: int) -> bytes:
    return ebml.element(ebml.TRACKS, _video_track(height, width), _audio_track())


def _video_track(height: int, width: int) -> bytes:
    colour = ebml.element(
        ebml.COLOUR,
        ebml.unsigned(ebml.MATRIX, MATRIX_SMPTE170M),
        ebml.unsigned(ebml.RANGE, LIMITED_RANGE),
        ebml.unsigned(ebml.TRANSFER, TRANSFER_BT709),
        ebml.unsigned(ebml.PRIMARIES, PRIMARIES_BT709),
    )
    return ebml.element(
        ebml.TRACK_ENTRY,
        *_track_head(VIDEO_TRACK, VIDEO_TYPE, "V_VP9", NS_PER_S // FPS),
        ebml.element(
            ebml.VIDEO,
            ebml.unsigned(ebml.PIXEL_WIDTH, width),
            ebml.unsigned(ebml.PIXEL_HEIGHT, height),
            colour,
        ),
    )


def _audio_track() -> bytes:
    return ebml.element(
        ebml.TRACK_ENTRY,
        *_track_head(AUDIO_TRACK, AUDIO_TYPE, "A_OPUS", opus.PACKET_MS * NS_PER_MS),
        ebml.element(ebml.CODEC_PRIVATE, opus.opus_head()),
        ebml.unsigned(ebml.CODEC_DELAY, _nanoseconds(opus.PRE_SKIP_SAMPLES)),
        ebml.unsigned(ebml.SEEK_PRE_ROLL, SEEK_PRE_ROLL_MS * NS_PER_MS),
        ebml.element(
            ebml.AUDIO,
            ebml.double(ebml.SAMPLING_FREQUENCY, LISTENER_RATE_HZ),
            ebml.unsigned(ebml.CHANNELS, 1),
        ),
    )


def _track_head(number: int, kind: int, codec: str, frame_ns: int) -> tuple[bytes, ...]:
    return (
        ebml.unsigned(ebml.TRACK_NUMBER, number),
        ebml.unsigned(ebml.TRACK_UID, number),
        ebml.unsigned(ebml.TRACK_TYPE, kind),
        ebml.unsigned(ebml.FLAG_LACING, 0),
        ebml.text(ebml.CODEC_ID, codec),
        ebml.unsigned(ebml.DEFAULT_DURATION, frame_ns),
    )


def _seek_head(info_at: int, tracks_at: int, cues_at: int) -> bytes:
    entries = ((ebml.INFO, info_at), (ebml.TRACKS, tracks_at), (ebml.CUES, cues_at))
    return ebml.element(
        ebml.SEEK_HEAD,
        *(
            ebml.element(
                ebml.SEEK,
                ebml.element(ebml.SEEK_ID, ebml.identity_bytes(identity)),
                ebml.unsigned(ebml.SEEK_POSITION, position, POSITION_BYTES),
            )
            for identity, position in entries
        ),
    )


def _cues(clusters: Sequence[bytes], spans: Sequence[tuple[int, int]], position: int) -> bytes:
    """A cue for each cluster that begins with a picture; ``position`` is the first one's."""
    points = []
    for cluster, (start_ms, frames) in zip(clusters, spans, strict=True):
        if frames:
            points.append(_cue_point(start_ms, position))
        position += len(cluster)
    return ebml.element(ebml.CUES, *points)


def _cue_point(start_ms: int, position: int) -> bytes:
    return ebml.element(
        ebml.CUE_POINT,
        ebml.unsigned(ebml.CUE_TIME, start_ms),
        ebml.element(
            ebml.CUE_TRACK_POSITIONS,
            ebml.unsigned(ebml.CUE_TRACK, VIDEO_TRACK),
            ebml.unsigned(ebml.CUE_CLUSTER_POSITION, position, POSITION_BYTES),
        ),
    )


def _span(cluster: bytes) -> tuple[int, int]:
    """(start_ms, video frames) of a cluster."""
    start_ms = frames = 0
    ((_, start, end),) = ebml.children(cluster, 0, len(cluster))
    for identity, first, last in ebml.children(cluster, start, end):
        if identity == ebml.TIMECODE:
            start_ms = int.from_bytes(cluster[first:last], "big")
        elif identity == ebml.SIMPLE_BLOCK:
            frames += cluster[first] & 0x7F == VIDEO_TRACK
    return start_ms, frames
