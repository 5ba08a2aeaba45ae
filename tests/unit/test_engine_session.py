"""Sessions on the real networks at miniature size: resuming, batching, isolation, both audio modes."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from engines import (
    engine,
    features_of,
    play,
    random_portrait,
    same_state,
    spec,
    speech,
    speech_encoder,
    stream_calls,
)

from serve_app.config import ModelSettings
from serve_app.engine import audio_cache
from serve_app.engine.colour import match_colour
from serve_app.engine.engine import PORTRAITS_KEPT, Engine
from serve_app.engine.reference import Reference
from serve_app.engine.row import ChunkRow
from serve_app.engine.state import SessionState
from serve_app.errors import FlashHeadError, OutOfRange, SnapshotError, StaleCall
from serve_app.model.audio_features import select_windows
from serve_app.model.checkpoint import load_audio_features
from serve_app.model.presets import checkpoint_root, preset
from serve_app.session.timeline import ClipTimeline
from serve_app.types import AudioSlice, ChunkCall, SessionSpec

MODELS = ("lite", "pro")


def started(machine: Engine, spec: SessionSpec, call: ChunkCall) -> ChunkRow:
    state, reference = machine.open(spec)
    return machine.begin(state, reference, features_of(state, call, machine.geometry), call)


def once_calls(pcm: np.ndarray, machine: Engine) -> list[ChunkCall]:
    timeline = ClipTimeline(pcm, np.repeat(pcm, 3), machine.geometry, "once")
    plans = [asyncio.run(timeline.plan(index)) for index in range(len(timeline))]
    return [
        ChunkCall("s", 0, plan.index, plan.audio, None, plan.first_frame, plan.frame_count, plan.final)
        for plan in plans
        if plan is not None
    ]


class TestResume:
    @pytest.mark.parametrize("mode", ["stream", "once"])
    @pytest.mark.parametrize("name", MODELS)
    def test_at_every_chunk_equals_uninterrupted(self, name: str, mode: str) -> None:
        machine = engine(name)
        pcm = speech(machine.geometry.frames + 2 * machine.geometry.slice_frames + 5)
        calls = stream_calls(pcm, machine.geometry) if mode == "stream" else once_calls(pcm, machine)
        session = spec(name, mode="stream" if mode == "stream" else "once")
        frames, states = play(machine, session, calls)

        def moved(state: SessionState, _: Reference) -> tuple[SessionState, Reference]:
            return engine(name).restore(session, state.to_bytes())

        again, states_again = play(machine, session, calls, between=moved)
        assert len(frames) == 4
        assert all(np.array_equal(one, other) for one, other in zip(frames, again, strict=True))
        assert all(same_state(one, other) for one, other in zip(states, states_again, strict=True))

    def test_a_chunk_made_again_from_its_state_is_the_same(self) -> None:
        machine = engine("lite")
        state, reference = machine.open(spec("lite"))
        [call] = stream_calls(speech(3), machine.geometry)
        features = features_of(state, call, machine.geometry)
        made = [
            machine.step([state], [reference], [features], [replace(call, final=final)])
            for final in (True, False, True)
        ]
        assert all(np.array_equal(one[0][0], made[0][0][0]) for one in made)
        assert made[0][0][1] is None
        assert made[1][0][1] is not None

    def test_the_epoch_is_the_openings(self) -> None:
        machine = engine("lite")
        state, _ = machine.open(spec("lite"), epoch=2)
        restored, _ = machine.restore(spec("lite"), state.to_bytes(), epoch=5)
        assert (state.epoch, restored.epoch) == (2, 5)
        with pytest.raises(StaleCall, match="opening 1"):
            machine.restore(spec("lite"), state.to_bytes(), epoch=1)

    @pytest.mark.parametrize(
        ("other", "named"),
        [
            (spec("lite", seed=1), "spec_digest"),
            (spec("lite", portrait=random_portrait("lite", 9)), "spec_digest"),
            (spec("lite", steps=2), "steps"),
            (spec("lite", mode="once"), "audio_cache"),
        ],
        ids=["seed", "portrait", "steps", "mode"],
    )
    def test_another_sessions_snapshot_is_refused(self, other: SessionSpec, named: str) -> None:
        machine = engine("lite")
        state, _ = machine.open(spec("lite"))
        with pytest.raises(SnapshotError, match=named):
            machine.restore(other, state.to_bytes())

    @pytest.mark.parametrize(
        ("field", "value"), [("device", "cuda"), ("motion", torch.zeros(16, 2, 2, 1)), ("model", "pro")]
    )
    def test_a_snapshot_of_another_engine_is_refused(self, field: str, value: object) -> None:
        machine = engine("lite")
        state, _ = machine.open(spec("lite"))
        with pytest.raises(SnapshotError, match=field):
            machine.restore(spec("lite"), replace(state, **{field: value}).to_bytes())


class TestRows:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_row_among_others_at_other_steps_equals_the_row_alone(self, name: str) -> None:
        machine = engine(name)
        sessions = [
            spec(name, seed=seed, portrait=random_portrait(name, seed), steps=steps)
            for seed, steps in ((1, 4), (2, 3), (3, 4))
        ]
        calls = [stream_calls(speech(20, seed), machine.geometry)[0] for seed in range(3)]
        alone = [started(machine, *pair) for pair in zip(sessions, calls, strict=True)]
        for row in alone:
            while row.steps_left:
                machine.denoise([row])
        mixed = [started(machine, *pair) for pair in zip(sessions, calls, strict=True)]
        machine.denoise(mixed[:1])
        machine.denoise(mixed[:2])
        while moving := [row for row in mixed if row.steps_left]:
            machine.denoise(moving)
        for one, other in zip(alone, mixed, strict=True):
            assert (one.x - other.x).abs().max() <= 1e-5 * one.x.abs().max()
            levels = machine.decode(one).astype(int) - machine.decode(other)
            assert np.abs(levels).max() <= 1
            assert np.mean(levels != 0) <= 1e-3

    def test_interleaved_sessions_equal_their_solo_runs(self) -> None:
        machine = engine("lite")
        sessions = [spec("lite", seed=seed, portrait=random_portrait("lite", seed)) for seed in (1, 2)]
        calls = [stream_calls(speech(60, seed), machine.geometry) for seed in (1, 2)]
        solo = [play(engine("lite"), *pair) for pair in zip(sessions, calls, strict=True)]
        held = [machine.open(session) for session in sessions]
        for turn in range(3):
            rows = []
            for (state, reference), own in zip(held, calls, strict=True):
                features = features_of(state, own[turn], machine.geometry)
                rows.append(machine.begin(state, reference, features, own[turn]))
            for _ in range(4):
                for row in rows:
                    machine.denoise([row])
            for index, row in enumerate(rows):
                assert np.array_equal(machine.decode(row), solo[index][0][turn])
                if not row.call.final:
                    held[index] = machine.advance(row), held[index][1]
                    assert same_state(held[index][0], solo[index][1][turn])

    def test_a_step_of_whole_chunks(self) -> None:
        machine = engine("lite")
        sessions = [spec("lite", seed=seed) for seed in (1, 2)]
        held = [machine.open(session) for session in sessions]
        calls = [stream_calls(speech(20), machine.geometry)[0]] * 2
        features = [features_of(held[0][0], calls[0], machine.geometry)] * 2
        answers = machine.step([one[0] for one in held], [one[1] for one in held], features, calls)
        assert [frames.shape for frames, _ in answers] == [(20, 96, 32)] * 2
        assert not np.array_equal(answers[0][0], answers[1][0])

    def test_a_failed_forward_leaves_rows_as_they_were(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = engine("lite")
        call = stream_calls(speech(24), machine.geometry)[0]
        row, untroubled = (started(machine, spec("lite"), call) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_velocity", lambda rows: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                machine.denoise([row])
        for each in (row, untroubled):
            machine.denoise([each])
        assert torch.equal(row.x, untroubled.x)


class TestSpeech:
    @pytest.mark.parametrize("flushed", [1, 8, 23])
    def test_after_a_flush_motion_comes_from_the_frames_that_end_at_the_last_delivered(
        self, flushed: int
    ) -> None:
        machine = engine("lite")
        carried = machine.geometry.motion_frames
        [call] = stream_calls(speech(flushed), machine.geometry)
        row = started(machine, spec("lite"), replace(call, final=False))
        while row.steps_left:
            machine.denoise([row])
        frames = machine.decode(row)
        assert len(frames) == flushed
        decoded = machine._vae.decode(row.x)[:, :, flushed : flushed + carried]
        pixels = match_colour(decoded, row.reference.colour, 1.0)
        assert torch.allclose(row.video[:, :, -carried:], pixels, atol=1e-5)
        noise = machine._noise.resumed(*row.noise.states()).posterior((1, *machine._motion_shape))
        expected = machine._vae.encode(pixels, noise)[0]
        state = machine.advance(row)
        assert torch.allclose(state.motion, expected, atol=1e-4)

    def test_a_flush_in_the_middle_delivers_every_frame_and_forgets_its_padding(self) -> None:
        machine = engine("lite")
        pcm = speech(24 + 5 + 24)
        cuts = [pcm[: 24 * 640], pcm[24 * 640 : 29 * 640], pcm[29 * 640 :]]
        calls = [
            ChunkCall("s", 0, index, AudioSlice(cut), None, 9, len(cut) // 640, final=index == 2)
            for index, cut in enumerate(cuts)
        ]
        frames, states = play(machine, spec("lite"), calls)
        assert [len(made) for made in frames] == [24, 5, 24]
        assert np.array_equal(states[1].audio_cache[-29 * 640 :], pcm[: 29 * 640])

    @pytest.mark.parametrize("frames", [5, 33, 34, 57, 80])
    def test_once_mode_covers_the_clip_and_looks_ahead(self, frames: int) -> None:
        machine = engine("lite")
        calls = once_calls(speech(frames), machine)
        made, _ = play(machine, spec("lite", mode="once"), calls)
        assert sum(len(one) for one in made) == frames
        clip = calls[0].audio
        rows = speech_encoder().encode(torch.from_numpy(clip.samples), clip.statistics)
        whole = select_windows(rows, 0, len(rows))
        for call in calls:
            wanted, _ = audio_cache.window(audio_cache.empty_cache("once"), call.audio, machine.geometry)
            features = speech_encoder().rows(wanted)
            windows = machine._windows(features, call.audio, wanted.first_row)
            start = call.index * machine.geometry.slice_frames
            assert torch.allclose(windows, whole[:, start : start + machine.geometry.frames], atol=1e-6)

    def test_both_modes_animate_the_same_clip(self) -> None:
        machine = engine("lite")
        pcm = speech(60)
        streamed, _ = play(machine, spec("lite"), stream_calls(pcm, machine.geometry))
        whole, _ = play(machine, spec("lite", mode="once"), once_calls(pcm, machine))
        one, other = np.concatenate(streamed), np.concatenate(whole)
        assert one.shape == other.shape == (60, 96, 32)
        assert not np.array_equal(one, other)

    def test_speech_moves_the_picture(self) -> None:
        machine = engine("lite")
        silence = np.zeros(24 * 640, np.float32)
        quiet, _ = play(machine, spec("lite"), stream_calls(silence, machine.geometry))
        loud, _ = play(machine, spec("lite"), stream_calls(speech(24), machine.geometry))
        assert not np.array_equal(quiet[0], loud[0])


class TestDraws:
    @pytest.mark.parametrize("steps", [2, 3, 4])
    def test_a_chunk_takes_one_draw_more_than_steps(self, steps: int) -> None:
        machine = engine("lite")
        calls = stream_calls(speech(48), machine.geometry)
        _, [after] = play(machine, spec("lite", steps=steps), calls)
        streams = machine._noise.seeded(42)
        for _ in range(steps + 1):
            streams.latent(machine._latent_shape)
        streams.posterior((1, *machine._latent_shape))
        streams.posterior((1, *machine._motion_shape))
        assert torch.equal(after.noise, streams.states()[0])
        assert torch.equal(after.posterior, streams.states()[1])

    def test_pro_takes_the_posterior_mean(self) -> None:
        machine = engine("pro")
        state, _ = machine.open(spec("pro"))
        _, [after] = play(machine, spec("pro"), stream_calls(speech(56), machine.geometry))
        assert torch.equal(after.posterior, state.posterior)

    def test_the_seed_decides(self) -> None:
        machine = engine("lite")
        calls = stream_calls(speech(24), machine.geometry)
        videos = [play(machine, spec("lite", seed=seed), calls)[0][0] for seed in (1, 1, 2)]
        assert np.array_equal(videos[0], videos[1])
        assert not np.array_equal(videos[0], videos[2])


class TestTeacher:
    def test_guidance_and_euler_run_and_draw_once(self) -> None:
        machine = engine("pretrained")
        calls = stream_calls(speech(56), machine.geometry)
        frames, [after] = play(machine, spec("pretrained"), calls)
        assert [len(made) for made in frames] == [28, 28]
        streams = machine._noise.seeded(42)
        streams.latent(machine._latent_shape)
        assert torch.equal(after.noise, streams.states()[0])

    def test_guided_rows_of_a_batch_equal_rows_alone(self) -> None:
        machine = engine("pretrained")
        calls = [stream_calls(speech(28, seed), machine.geometry)[0] for seed in (1, 2)]
        alone = [started(machine, spec("pretrained"), call) for call in calls]
        together = [started(machine, spec("pretrained"), call) for call in calls]
        for row in alone:
            machine.denoise([row])
        machine.denoise(together)
        for one, other in zip(alone, together, strict=True):
            assert (one.x - other.x).abs().max() <= 1e-5 * one.x.abs().max()


class TestRefusals:
    @pytest.mark.parametrize(
        "wrong",
        [
            replace(spec("lite"), model="pro"),
            replace(spec("lite"), portrait=np.zeros((32, 64, 3), np.uint8)),
            replace(spec("lite"), portrait=np.zeros((64, 32, 3), np.float32)),
            replace(spec("lite"), seed=-1),
            replace(spec("lite"), seed=2**63),
            replace(spec("lite"), steps=5),
            replace(spec("lite"), steps=1),
            replace(spec("lite"), audio_encode="twice"),
        ],
        ids=["model", "size", "dtype", "seed", "large seed", "steps", "one step", "mode"],
    )
    def test_specs(self, wrong: SessionSpec) -> None:
        with pytest.raises(OutOfRange, match="accepted"):
            engine("lite").open(wrong)

    @pytest.mark.parametrize(
        "change",
        [
            {"index": 1},
            {"first_frame": 0},
            {"frame_count": 23},
            {"frame_count": 25},
            {"frame_count": 0},
            {"audio": AudioSlice(speech(40), rows=(0, 33))},
            {"audio": AudioSlice(speech(25))},
        ],
        ids=["index", "first frame", "fewer frames", "more frames", "no frames", "mode", "long slice"],
    )
    def test_calls(self, change: dict) -> None:
        machine = engine("lite")
        [call] = stream_calls(speech(24), machine.geometry)
        state, reference = machine.open(spec("lite"))
        features = features_of(state, call, machine.geometry)
        with pytest.raises(OutOfRange):
            machine.begin(state, reference, features, replace(call, **change))

    def test_a_short_first_chunk_in_once_mode_can_only_be_final(self) -> None:
        machine = engine("lite")
        [call] = once_calls(speech(5), machine)
        state, reference = machine.open(spec("lite", mode="once"))
        features = features_of(state, call, machine.geometry)
        assert len(machine.step([state], [reference], [features], [call])[0][0]) == 5
        with pytest.raises(OutOfRange, match="or final"):
            machine.begin(state, reference, features, replace(call, final=False))

    @pytest.mark.parametrize(
        "features", [np.zeros((34, 3, 24), np.float32), np.zeros((35, 3, 24)), np.zeros((35, 3), np.float32)]
    )
    def test_features(self, features: np.ndarray) -> None:
        machine = engine("lite")
        [call] = stream_calls(speech(24), machine.geometry)
        state, reference = machine.open(spec("lite"))
        with pytest.raises(FlashHeadError, match="features"):
            machine.begin(state, reference, features, call)


class TestLife:
    def test_the_embedded_model_streams_and_resumes(self) -> None:
        settings = ModelSettings(name="tiny", device="cpu")
        machine = Engine.load(settings)
        size = machine.geometry
        portrait = np.full((size.height, size.width, 3), 90, np.uint8)
        session = SessionSpec("s", "tiny", portrait, 42, 4, "stream")
        audio = load_audio_features(checkpoint_root("embedded"), preset("tiny"), torch.device("cpu"))
        state, reference = machine.open(session)
        for call in stream_calls(speech(30), size):
            window, _ = audio_cache.window(state.audio_cache, call.audio, size)
            [(frames, following)] = machine.step([state], [reference], [audio.rows(window)], [call])
            assert frames.shape == (call.frame_count, size.height * 3 // 2, size.width)
            if following is not None:
                state, reference = Engine.load(settings).restore(session, following.to_bytes())

    def test_read_only_arrays_are_enough(self) -> None:
        """What comes out of an object store cannot be written to."""
        machine = engine("lite")
        portrait, pcm = random_portrait("lite", 0), speech(24)
        portrait.setflags(write=False)
        pcm.setflags(write=False)
        [call] = stream_calls(pcm, machine.geometry)
        state, reference = machine.open(spec("lite", portrait=portrait))
        features = features_of(state, call, machine.geometry)
        features.setflags(write=False)
        [(frames, following)] = machine.step([state], [reference], [features], [replace(call, final=False)])
        assert frames.flags.c_contiguous
        assert following is not None
        assert following.to_bytes()

    def test_card(self) -> None:
        assert engine("lite").card.reproducible
        assert not engine("lite", max_rows=2).card.reproducible
        assert engine("pro").card.geometry.slice_frames == 28

    def test_warm_up_leaves_sessions_as_they_are(self) -> None:
        cold, warm = engine("lite"), engine("lite", max_rows=2)
        warm.warm_up()
        calls = stream_calls(speech(24), cold.geometry)
        [one], [other] = (play(machine, spec("lite"), calls)[0] for machine in (cold, warm))
        assert np.array_equal(one, other)

    def test_portraits_kept_are_bounded(self) -> None:
        machine = engine("lite")
        for seed in range(PORTRAITS_KEPT + 3):
            machine.open(spec("lite", portrait=random_portrait("lite", seed)))
        assert len(machine._moments) == PORTRAITS_KEPT

    def test_a_long_stream_stays_finite_and_flat(self) -> None:
        machine = engine("lite")
        state, reference = machine.open(spec("lite"))
        base = stream_calls(speech(48), machine.geometry)[0]
        footprints = {}
        for index in range(150):
            call = replace(base, index=index)
            features = features_of(state, call, machine.geometry)
            [(frames, following)] = machine.step([state], [reference], [features], [call])
            assert following is not None
            state = following
            assert torch.isfinite(state.motion).all()
            assert frames.std() > 1
            if index in (30, 149):
                footprints[index] = footprint()
        assert footprints[149][0] == footprints[30][0]
        assert footprints[149][1] - footprints[30][1] < 16 * 2**20
        assert len(state.to_bytes()) < 1_000_000


def footprint() -> tuple[int, int]:
    """Live tensors, and bytes of resident memory."""
    gc.collect()
    tensors = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    return tensors, psutil.Process().memory_info().rss
