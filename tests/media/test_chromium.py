"""What is written, played by a real Chromium."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from serve_app.config import VideoSettings
from serve_app.media.chunk_encoder import ChunkEncoder, finalise_mp4
from serve_app.media.opus import PRE_SKIP_SAMPLES
from serve_app.media.webm import finalise_webm, webm_header

from media.chromium import Browser, Page, Playback, chromium, play_stream
from media.clips import closing_job, encode_clip, jobs, moving_pattern, sweep
from media.programs import needs
from media.test_chunk_encoder import yuv420p

pytestmark = needs("chromium")

SIZE = (512, 512)
SAMPLES = 4 * 24 * 1920 + 24_321
FRAMES = -(-SAMPLES // 1920)
RATES = (1.0, 1.0, 1.0, 0.5, 0.25)
"""Playback rates tried until no frame is dropped. A machine at its limit drops frames of any video; a stream
at fault drops them at every rate."""


class Shelf(BaseHTTPRequestHandler):
    """Serves named files, whole or in pieces with pauses."""

    files: ClassVar[dict[str, list[bytes]]] = {"/": [b"<!doctype html><title>player</title>"]}
    pause_s: ClassVar[float] = 0.3
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        pieces = self.files.get(self.path, [])
        self.send_response(200 if pieces else 404)
        self.send_header("Content-Type", "text/html" if self.path == "/" else "video/webm")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index, piece in enumerate(pieces):
            time.sleep(self.pause_s if index else 0)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, origin: str) -> Page:
    return browser.open(f"{origin}/")


@pytest.fixture(scope="module")
def clusters() -> list[bytes]:
    return encode_clip(sweep(SAMPLES), moving_pattern(*SIZE))


def best_of(page: Page, url: str) -> Playback:
    for rate in RATES:
        playback = play_stream(page, url, rate=rate)
        if playback.dropped_frames == 0:
            break
    return playback


def check(playback: Playback, samples: int = SAMPLES) -> None:
    """MediaSource counts the last packet whole, though its padding is not played."""
    frames = -(-samples // 1920)
    length = max(frames * 0.04, -(-(samples + PRE_SKIP_SAMPLES) // 960) * 0.02)
    assert playback.size == SIZE
    assert len(playback.buffered) == 1
    start, end = playback.buffered[0]
    assert start == 0 and end == pytest.approx(playback.duration, abs=0.021)
    assert playback.duration == pytest.approx(length, abs=0.001)
    assert playback.ended_at == pytest.approx(playback.duration, abs=0.001)
    assert playback.dropped_frames == 0 and playback.frames == frames
    assert {round(seconds * 1000) % 40 for seconds in playback.times} == {0}


def test_a_stream_plays_as_it_arrives(page: Page, origin: str, clusters: list[bytes]) -> None:
    head = webm_header(*SIZE) + clusters[0]
    Shelf.files["/live.webm"] = [head, *clusters[1:]]
    playback = best_of(page, f"{origin}/live.webm")
    check(playback)
    assert playback.playing_after - playback.first_bytes_after < 1.0


def test_a_finished_file_plays_the_same(page: Page, origin: str, clusters: list[bytes]) -> None:
    Shelf.files["/batch.webm"] = [finalise_webm(*SIZE, clusters, SAMPLES)]
    check(best_of(page, f"{origin}/batch.webm"))


def test_an_end_after_a_full_chunk_plays(page: Page, origin: str) -> None:
    pcm = sweep(2 * 24 * 1920)
    encoded = encode_clip(np.concatenate([pcm, pcm]), moving_pattern(*SIZE))[:2]
    closing = ChunkEncoder(VideoSettings(), *SIZE).encode(None, closing_job(pcm))
    Shelf.files["/closed.webm"] = [webm_header(*SIZE), *encoded, closing]
    check(best_of(page, f"{origin}/closed.webm"), len(pcm))


@pytest.mark.parametrize("samples", [SAMPLES, 2 * 24 * 1920, 2 * 24 * 1920 - 50])
def test_chromium_decodes_to_the_end(page: Page, samples: int) -> None:
    """Its file reader takes the codec delay of 2.5 ms for 3 ms, which is 24 samples."""
    clip = encode_clip(sweep(samples), moving_pattern(32, 32))
    Shelf.files["/sound.webm"] = [finalise_webm(32, 32, clip, samples)]
    heard = page.run(
        """fetch('/sound.webm').then(answer => answer.arrayBuffer())
           .then(data => new OfflineAudioContext(1, 1, 48000).decodeAudioData(data))
           .then(sound => sound.length)"""
    )
    assert heard == samples - 24


SEEK = """
(async kind => {
  const data = await (await fetch(kind)).blob();
  const video = document.createElement('video');
  document.body.replaceChildren(video);
  video.src = URL.createObjectURL(data);
  await new Promise((r, f) => { video.onloadeddata = r; video.onerror = () => f(video.error.message); });
  const at = [];
  for (const target of [3.0, 0.5, 2.0]) {
    video.currentTime = target;
    await new Promise(r => { video.onseeked = r; });
    at.push(video.currentTime);
  }
  return {duration: video.duration, seekable: video.seekable.end(0), at};
})
"""


def test_a_finished_file_says_its_length_and_can_be_searched(
    page: Page, origin: str, clusters: list[bytes]
) -> None:
    Shelf.files["/batch.webm"] = [finalise_webm(*SIZE, clusters, SAMPLES)]
    said = page.run(f"({SEEK.strip()})('/batch.webm')")
    assert said["duration"] == said["seekable"] == pytest.approx(FRAMES * 0.04, abs=0.001)
    assert said["at"] == [3.0, 0.5, 2.0]


def test_an_mp4_says_its_length_and_can_be_searched(page: Page, origin: str) -> None:
    if not page.run(
        """document.createElement('video').canPlayType('video/mp4; codecs="avc1.64001f"') != ''"""
    ):
        pytest.skip("this Chromium plays no H.264")
    pcm = sweep(SAMPLES)
    chunks = encode_clip(pcm, moving_pattern(*SIZE), container="mp4")
    Shelf.files["/clip.mp4"] = [finalise_mp4(*SIZE, chunks, pcm)]
    said = page.run(f"({SEEK.strip()})('/clip.mp4')")
    assert said["duration"] == said["seekable"] == pytest.approx(FRAMES * 0.04, abs=0.001)
    assert said["at"] == [3.0, 0.5, 2.0]


COLOURS = """
(async (kind, side) => {
  const video = document.createElement('video'), canvas = document.createElement('canvas');
  document.body.replaceChildren(video);
  video.src = URL.createObjectURL(await (await fetch(kind)).blob());
  await new Promise((r, f) => {
    video.requestVideoFrameCallback(r); video.onerror = () => f(video.error.message); video.play();
  });
  video.pause();
  [canvas.height, canvas.width] = [video.videoHeight, video.videoWidth];
  const painter = canvas.getContext('2d', {willReadFrequently: true});
  painter.drawImage(video, 0, 0);
  const found = [];
  for (let y = side / 2; y < canvas.height; y += side)
    for (let x = side / 2; x < canvas.width; x += side)
      found.push([...painter.getImageData(x, y, 1, 1).data.slice(0, 3)]);
  return found;
})
"""


@pytest.mark.parametrize("container", ["webm", "mp4"])
def test_colours_are_shown_as_they_were_drawn(page: Page, origin: str, container: str) -> None:
    """16 flat patches of the whole gamut, coded finely so that only the conversion is measured."""
    side, levels = 64, (0, 85, 170, 255)
    rgb = np.array([(a, b, (a + 2 * b) % 256) for a in levels for b in levels])
    rgb[:4] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    patches = np.kron(rgb.reshape(4, 4, 3), np.ones((side, side, 1)))
    pcm = sweep(24 * 1920)
    (work,) = jobs(pcm, container=container)
    frames = np.repeat(yuv420p(patches)[np.newaxis], 24, axis=0)
    chunk = ChunkEncoder(VideoSettings(crf=4), 4 * side, 4 * side).encode(frames, work)
    size = (4 * side, 4 * side)
    data = (
        finalise_mp4(*size, [chunk], pcm) if container == "mp4" else finalise_webm(*size, [chunk], len(pcm))
    )
    Shelf.files["/colours"] = [data]
    shown = np.array(page.run(f"({COLOURS.strip()})({json.dumps('/colours')}, {side})"))
    assert np.abs(shown - rgb).max() <= 3
    assert np.abs(shown - rgb).mean() <= 1
