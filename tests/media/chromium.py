"""A real Chromium, driven over its DevTools protocol: opens pages, runs scripts, plays streams.

    with chromium() as browser:
        page = browser.open("http://127.0.0.1:8000/health")
        playback = play_stream(page, "http://127.0.0.1:8000/animate", form={"image": path, "audio": path})

A page can fetch from its own origin, so open one there first.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
)
START_TIMEOUT_S = 60.0
MIME_TYPE = 'video/webm; codecs="vp09.00.30.08,opus"'


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own; gone with all its processes at the end."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with connect(_address(Path(profile)), max_size=None) as socket:
                yield Browser(socket)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(profile: Path) -> str:
    """Chromium writes its port and path into the profile when it listens."""
    deadline = time.monotonic() + START_TIMEOUT_S
    said = profile / "DevToolsActivePort"
    while time.monotonic() < deadline:
        if said.exists() and len(lines := said.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise TimeoutError(f"chromium did not listen within {START_TIMEOUT_S:g} s")


class ScriptError(Exception):
    """A script in the page threw, or the browser refused a command."""


class Browser:
    """Commands to the browser and to its pages share one socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def open(self, url: str) -> Page:
        """A new page at ``url``."""
        target = self.command("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.command("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, attached["sessionId"])
        page.command("Page.enable")
        page.command("Page.navigate", {"url": url})
        page.run("new Promise(r => document.readyState == 'complete' ? r() : addEventListener('load', r))")
        return page

    def command(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        session: str | None = None,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """Its result; events that arrive meanwhile are dropped."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": dict(params or {})}
        self._socket.send(json.dumps({**message, "sessionId": session} if session else message))
        deadline = time.monotonic() + timeout_s
        while True:
            answer = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise ScriptError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def command(
        self, method: str, params: Mapping[str, Any] | None = None, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """See ``Browser.command``."""
        return self._browser.command(method, params, self._session, timeout_s)

    def run(self, script: str, timeout_s: float = 60.0) -> Any:
        """The value of an expression; of a promise, what it resolves to.

        Raises:
            ScriptError: it threw.
        """
        params = {"expression": script, "awaitPromise": True, "returnByValue": True}
        done = self.command("Runtime.evaluate", params, timeout_s)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise ScriptError(details.get("exception", {}).get("description", details["text"]))
        return done["result"].get("value")

    def screenshot(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot")["data"])


@dataclass(frozen=True)
class Playback:
    """How a stream played, in seconds. ``times`` are the media times of the frames presented."""

    status: int
    size: tuple[int, int]
    duration: float
    ended_at: float
    buffered: tuple[tuple[float, float], ...]
    dropped_frames: int
    frames: int
    times: tuple[float, ...]
    first_bytes_after: float
    playing_after: float
    waits: int


PLAY = """
(async ({url, method, form, mimeType, rate}) => {
  const blob = (name, data) => fetch('data:application/octet-stream;base64,' + data).then(r => r.blob());
  let body;
  if (form) {
    body = new FormData();
    for (const [key, value] of Object.entries(form))
      if (typeof value == 'string') body.append(key, value);
      else body.append(key, await blob(value.name, value.data), value.name);
  }
  const begun = performance.now(), since = () => (performance.now() - begun) / 1000;
  const video = document.createElement('video'), source = new MediaSource();
  document.body.replaceChildren(video);
  video.defaultPlaybackRate = video.playbackRate = rate;
  video.src = URL.createObjectURL(source);
  await new Promise(r => source.addEventListener('sourceopen', r, {once: true}));
  const buffer = source.addSourceBuffer(mimeType);
  const times = []; let waits = 0, playing = -1, first = -1;
  const seen = (now, frame) => { times.push(frame.mediaTime); video.requestVideoFrameCallback(seen); };
  video.requestVideoFrameCallback(seen);
  video.addEventListener('playing', () => { if (playing < 0) playing = since(); });
  video.addEventListener('waiting', () => { if (playing >= 0) waits++; });
  const failed = new Promise((_, reject) =>
    video.addEventListener('error', () => reject(new Error(video.error.message))));
  const ended = new Promise(r => video.addEventListener('ended', r, {once: true}));
  const append = data => new Promise((resolve, reject) => {
    buffer.addEventListener('updateend', resolve, {once: true});
    buffer.addEventListener('error', () => reject(new Error('append failed')), {once: true});
    buffer.appendBuffer(data);
  });
  const answer = await fetch(url, {method, body});
  if (!answer.ok) throw new Error(answer.status + ' ' + await answer.text());
  const reader = answer.body.getReader();
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    if (first < 0) { first = since(); video.play(); }
    await Promise.race([append(value), failed]);
  }
  source.endOfStream();
  await Promise.race([ended, failed]);
  const ranges = [...Array(video.buffered.length).keys()]
    .map(i => [video.buffered.start(i), video.buffered.end(i)]);
  const quality = video.getVideoPlaybackQuality();
  return {
    status: answer.status, size: [video.videoHeight, video.videoWidth], duration: video.duration,
    ended_at: video.currentTime, buffered: ranges, dropped_frames: quality.droppedVideoFrames,
    frames: quality.totalVideoFrames, times, first_bytes_after: first, playing_after: playing, waits,
  };
})
"""


def play_stream(
    page: Page,
    url: str,
    method: str | None = None,
    form: Mapping[str, str | Path] | None = None,
    mime_type: str = MIME_TYPE,
    rate: float = 1.0,
    timeout_s: float = 120.0,
) -> Playback:
    """Play what ``url`` answers through MediaSource to its end, as it arrives; ``form`` may hold files.

    Raises:
        ScriptError: the answer was an error, or the player refused it.
    """
    arguments = {
        "url": url,
        "method": method or ("POST" if form else "GET"),
        "form": {key: _field(value) for key, value in form.items()} if form else None,
        "mimeType": mime_type,
        "rate": rate,
    }
    said = page.run(f"({PLAY.strip()})({json.dumps(arguments)})", timeout_s)
    said["buffered"] = tuple(tuple(span) for span in said["buffered"])
    return Playback(**{**said, "size": tuple(said["size"]), "times": tuple(said["times"])})


def _field(value: str | Path) -> str | dict[str, str]:
    if isinstance(value, str):
        return value
    return {"name": value.name, "data": base64.b64encode(value.read_bytes()).decode()}
