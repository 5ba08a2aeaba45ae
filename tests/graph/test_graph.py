"""The shipped graph on a real Ray instance: its main job, and what it survives."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw, ImageFilter

from serve_app.media.webm_reader import ClusterReader

from benchmarks.lipsync import FRAMES_PER_SECOND, rows, silent, watch
from graph.live import (
    EXAMPLES,
    animate,
    deploy,
    form,
    generator_stats,
    hasty_config,
    kill,
    open_sessions,
    replicas,
    wait_for_replicas,
    wait_for_sessions,
    with_replicas,
)
from media.chromium import chromium, play_stream
from media.programs import needs
from media.test_hostile_files import AUDIO, IMAGES
from training.talks import held_out_talk

SECONDS = 15.0


def speech(seconds: float, seed: int = 0) -> bytes:
    """A WAV at F5-TTS's rate: syllable-like bursts of noise."""
    samples = int(seconds * 24_000)
    noise = np.random.default_rng(seed).standard_normal(samples) * 0.1
    file = io.BytesIO()
    soundfile.write(file, noise * np.abs(np.sin(np.arange(samples) / 2400)), 24_000, "PCM_16", format="WAV")
    return file.getvalue()


def portrait(colour: tuple[int, int, int]) -> bytes:
    """A blurred disc of that colour on grey."""
    picture = Image.new("RGB", (160, 200), (128, 128, 128))
    ImageDraw.Draw(picture).ellipse((30, 40, 130, 160), fill=colour)
    file = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(8)).save(file, "PNG")
    return file.getvalue()


def read(video: bytes) -> ClusterReader:
    reader = ClusterReader()
    reader.feed(video)
    return reader


def test_the_example_is_animated_streamed_and_whole(graph: str) -> None:
    streamed = animate(graph, form())
    assert streamed.status_code == 200, streamed.text
    assert read(streamed.content).frame_count == int(streamed.headers["x-flashhead-frames"])
    assert (read(streamed.content).width, read(streamed.content).height) == (128, 128)
    whole = animate(graph, form(), stream="false")
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert read(whole.content).clusters == read(streamed.content).clusters
    mp4 = animate(graph, form(), stream="false", format="mp4")
    assert mp4.status_code == 200 and mp4.content[4:8] == b"ftyp"


@needs("espeak-ng")
def test_the_embedded_model_talks(graph: str) -> None:
    """HTTP in, WebM out and decoded: faces and voices that training never saw; what is required of
    ``benchmarks/lipsync.py``, but for its speed."""
    spoken = [watch(graph, held_out_talk(number, 240)) for number in (0, 4)]
    assert [len(one.frames) for one in spoken] == [240, 240]
    hushed = watch(graph, silent(held_out_talk(0, 75)))
    table = rows(spoken, hushed, long=spoken[0])
    assert [str(row) for row in table if not (row.passed or row.unit == FRAMES_PER_SECOND)] == []


def test_same_seed_same_bytes_other_seed_other_bytes(graph: str) -> None:
    files = form(audio=speech(3.0))
    videos = [animate(graph, files, seed=seed).content for seed in (1, 1, 2)]
    assert videos[0] == videos[1] != videos[2]


def test_the_first_cluster_is_out_before_the_second_chunk_is_generated(graph: str) -> None:
    before = sum(stats["chunks"] for stats in generator_stats())
    reader = ClusterReader()
    with httpx.stream("POST", f"{graph}/animate", files=form(audio=speech(SECONDS)), timeout=60) as answer:
        pieces = answer.iter_raw()
        while not reader.clusters:
            reader.feed(next(pieces))
        made = sum(stats["chunks"] for stats in generator_stats()) - before
        for piece in pieces:
            reader.feed(piece)
    assert made == 1
    assert len(reader.clusters) == 16


def test_two_interleaved_sessions_never_touch(graph: str) -> None:
    requests = [form(portrait((200, 30, 30)), speech(8.0, 1)), form(portrait((30, 30, 200)), speech(8.0, 2))]
    alone = [animate(graph, files).content for files in requests]
    with ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda files: animate(graph, files).content, requests * 2))
    assert together == alone * 2
    assert alone[0] != alone[1]


@pytest.mark.parametrize("deployment", ["FlashHeadGenerator-tiny", "AudioEncoder", "Encoder"])
def test_a_killed_replica_changes_no_byte(graph: str, deployment: str) -> None:
    wait_for_replicas(deployment, 2)
    files = form(audio=speech(SECONDS))
    undisturbed = animate(graph, files).content
    victims = replicas(deployment)
    sizes: list[int] = []
    with httpx.stream("POST", f"{graph}/animate", files=files, timeout=120) as answer:
        pieces = []
        for piece in answer.iter_raw():
            pieces.append(piece)
            sizes.append(read(b"".join(pieces)).frame_count)
            while victims and sizes[-1] > 24 * (6 - 3 * len(victims) + 1):
                kill(victims.pop(0))
    assert not victims
    assert open_sessions() == 0
    assert b"".join(pieces) == undisturbed
    wait_for_replicas(deployment, 2)


def test_scaling_down_under_streams_changes_no_byte(graph: str) -> None:
    wait_for_replicas("FlashHeadGenerator-tiny", 2)
    requests = [form(audio=speech(SECONDS, seed)) for seed in range(4)]
    undisturbed = [animate(graph, files).content for files in requests]
    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(animate, graph, files) for files in requests]
        wait_for_sessions(4)
        assert all(stats["streams"] for stats in generator_stats())
        deploy(with_replicas(hasty_config(), AudioEncoder=2, FlashHeadGenerator=1, Encoder=2), graph)
        wait_for_replicas("FlashHeadGenerator-tiny", 1)
        assert not all(stream.done() for stream in streams)
        assert [stream.result().content for stream in streams] == undisturbed
    deploy(with_replicas(hasty_config(), AudioEncoder=2, FlashHeadGenerator=2, Encoder=2), graph)
    wait_for_replicas("FlashHeadGenerator-tiny", 2)


def test_an_ingress_that_is_replaced_ends_its_streams_first(graph: str) -> None:
    files = form(audio=speech(3 * SECONDS))
    undisturbed = animate(graph, files).content
    config = with_replicas(hasty_config(), AudioEncoder=2, FlashHeadGenerator=2, Encoder=2)
    [ingress] = [d for d in config["applications"][0]["deployments"] if d["name"] == "Ingress"]
    ingress["ray_actor_options"]["num_cpus"] = 0.11
    [old] = replicas("Ingress")
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(animate, graph, files)
        wait_for_sessions(1)
        deploy(config, graph)
        assert stream.result().content == undisturbed
    old.wait(60)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_vanishes_leaves_nothing_running(graph: str, stream: str) -> None:
    with asking(graph, stream=stream):
        wait_for_sessions(1)
    wait_for_sessions(0, timeout_s=10)
    assert open_sessions() == 0


def test_a_reader_that_does_not_read_loses_its_session(graph: str) -> None:
    with asking(graph):
        wait_for_sessions(1)
        wait_for_sessions(0, timeout_s=60)
        assert open_sessions() == 0


def test_a_client_may_name_its_own_session(graph: str) -> None:
    named = {"X-Session-Id": "mine"}
    assert httpx.get(f"{graph}/ready", headers=named).status_code == 200
    answer = httpx.post(f"{graph}/animate", files=form(audio=speech(1.0)), headers=named, timeout=60)
    assert answer.status_code == 200


@contextlib.contextmanager
def asking(url: str, **fields: str) -> Iterator[None]:
    """A connection that has asked for ten minutes of video and reads nothing of it."""
    files = form(audio=speech(590.0))
    request = httpx.Request("POST", f"{url}/animate", files=files, data=fields)
    body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((request.url.host, request.url.port))
        client.sendall(f"POST /animate HTTP/1.1\r\n{head}\r\n".encode() + body)
        yield


def test_more_streams_than_places_are_refused_not_stalled(graph: str) -> None:
    statuses: list[int] = []

    def one() -> None:
        statuses.append(animate(graph, form(audio=speech(6.0))).status_code)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    assert open_sessions() == 0
    assert animate(graph, form(audio=speech(1.0))).status_code == 200


def test_hostile_files_are_refused_and_stall_nothing(graph: str) -> None:
    good = (EXAMPLES / "portrait.png").read_bytes()
    requests = [form(good, make()) for make, _, _ in AUDIO.values()]
    requests += [form(make(), speech(0.5)) for make, _, _ in IMAGES.values()]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda files: animate(graph, files), requests))
    expected = [kind.status for _, kind, _ in [*AUDIO.values(), *IMAGES.values()]]
    assert [answer.status_code for answer in answers] == expected
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    assert open_sessions() == 0
    assert animate(graph, form(audio=speech(0.5))).status_code == 200


@needs("chromium")
def test_a_browser_plays_the_stream_as_it_is_made(graph: str, tmp_path: Path) -> None:
    sound = tmp_path / "speech.wav"
    sound.write_bytes(speech(6.0))
    with chromium() as browser:
        page = browser.open(f"{graph}/health")
        playback = play_stream(
            page, f"{graph}/animate", form={"image": EXAMPLES / "portrait.png", "audio": sound}
        )
    one_packet = 0.021
    assert playback.buffered == ((0.0, pytest.approx(6.0, abs=one_packet)),)
    assert playback.duration == pytest.approx(6.0, abs=one_packet)
    assert playback.frames == 150
    assert playback.playing_after < playback.ended_at
