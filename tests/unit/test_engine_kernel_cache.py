"""Compiled kernels shared by replicas: kept once, found again, and what happens where they cannot be."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from serve_app.config import ModelSettings
from serve_app.engine import kernel_cache
from serve_app.engine.kernel_cache import KernelCache, kernel_file
from serve_app.engine.precision import Execution
from serve_app.model.attention import sdpa
from serve_app.model.dit import DiTConfig
from serve_app.types import Geometry

from unit.engines import CHECKPOINT

ROOT = Path(__file__).parents[2]
HOW = Execution(torch.device("cpu"), torch.float32, sdpa)
GEOMETRY = Geometry(64, 32, 33, 9)
CONFIG = DiTConfig.from_dict(
    json.loads((CHECKPOINT / "SoulX-FlashHead-1_3B/Model_Lite/config.json").read_text())
)


class Compiler(threading.local):
    """Torch's side, as each process has its own: the artifacts at hand, and how much was compiled."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.compilations = 0

    def load_cache_artifacts(self, content: bytes) -> SimpleNamespace | None:
        if content == b"of another torch":
            return None
        self.kept = set(content.decode().split())
        return SimpleNamespace(artifacts={"inductor": sorted(self.kept)})

    def save_cache_artifacts(self) -> tuple[bytes, SimpleNamespace] | None:
        keys = sorted(self.kept)
        return (" ".join(keys).encode(), SimpleNamespace(artifacts={"inductor": keys})) if keys else None

    def compile(self, key: str = "block") -> None:
        self.compilations += key not in self.kept
        self.kept.add(key)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", made.load_cache_artifacts)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", made.save_cache_artifacts)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "as before")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return made


def start(path: Path, compiler: Compiler, key: str = "block") -> int:
    """A replica's start in a process of its own: how many compilations it took."""
    compiler.kept, compiler.compilations = set(), 0
    with KernelCache(path).applied():
        compiler.compile(key)
    return compiler.compilations


def test_the_second_start_finds_what_the_first_compiled(tmp_path: Path, compiler: Compiler) -> None:
    path = tmp_path / "volume" / "lite.kernels"
    assert start(path, compiler) == 1
    first = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644, "other replicas may run as other users"
    folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert start(path, compiler) == 0
    assert path.read_bytes() == first
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != folder, "nothing of another compilation is at hand"
    assert [file.name for file in path.parent.iterdir()].count("lite.kernels") == 1
    assert not list(path.parent.glob(".*")), "no half-written file is left"


def test_new_kernels_replace_the_file(tmp_path: Path, compiler: Compiler) -> None:
    path = tmp_path / "lite.kernels"
    start(path, compiler)
    assert start(path, compiler, "other") == 1
    assert start(path, compiler, "other") == 0


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "of another torch"])
def test_a_damaged_file_is_told_and_replaced(
    tmp_path: Path, compiler: Compiler, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "lite.kernels"
    start(path, compiler)
    sound = path.read_bytes()
    if damage == "of another torch":
        content = damage.encode()
        path.write_bytes(kernel_cache.hashlib.sha256(content).digest() + content)
    else:
        path.write_bytes({"truncated": sound[:-1], "changed": sound[:-1] + b"x", "empty": b""}[damage])
    assert start(path, compiler) == 1
    assert "compiled anew" in caplog.text
    assert path.read_bytes() == sound


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_volume_is_told_and_done_without(
    tmp_path: Path, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o500)
    assert start(volume / "lite.kernels", compiler) == 1
    assert "without a lock" in caplog.text and "not kept" in caplog.text


def test_a_folder_that_cannot_be_made_is_told_and_done_without(
    tmp_path: Path, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "volume").write_text("a file")
    assert start(tmp_path / "volume" / "lite.kernels", compiler) == 1
    assert "without a lock" in caplog.text and "not kept" in caplog.text


def test_who_finds_another_compiling_waits_and_takes_its_kernels(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lite.kernels"
    waiting, compiled = threading.Event(), threading.Event()

    def wait(seconds: float) -> None:
        waiting.set()
        assert compiled.wait(10)

    monkeypatch.setattr(kernel_cache.time, "sleep", wait)
    taken: list[int] = []
    with KernelCache(path).applied():
        other = threading.Thread(target=lambda: taken.append(start(path, compiler)))
        other.start()
        assert waiting.wait(10)
        compiler.compile()
        assert compiler.compilations == 1
    compiled.set()
    other.join(10)
    assert taken == [0]


def test_another_that_never_ends_is_not_waited_for_longer(
    tmp_path: Path,
    compiler: Compiler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "lite.kernels"
    times = iter([0.0, 1.0, kernel_cache.WAIT_S + 1])
    monkeypatch.setattr(kernel_cache.time, "sleep", lambda seconds: None)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with KernelCache(path, now=lambda: next(times)).applied():
            compiler.compile()
    assert "still being compiled after 900 s" in caplog.text
    assert path.exists()


def file(**changed: object) -> Path | None:
    settings = ModelSettings(name="lite", checkpoint="/models", compile=True, **changed)
    return kernel_file(settings, HOW, GEOMETRY, CONFIG)


def test_kernels_are_kept_beside_the_weights_unless_told_otherwise() -> None:
    assert file().parent == Path("/models/compile-cache")
    assert file(compile_cache="/fast").parent == Path("/fast")
    assert file(compile_cache="none") is None
    embedded = ModelSettings(name="tiny", compile=True)
    assert kernel_file(embedded, HOW, GEOMETRY, CONFIG) is None
    assert kernel_file(embedded.model_copy(update={"compile": False}), HOW, GEOMETRY, CONFIG) is None


def test_what_kernels_depend_on_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(name="lite", checkpoint="/models", compile=True)
    names = {
        file(),
        file(max_rows=2),
        kernel_file(settings, replace(HOW, dtype=torch.bfloat16), GEOMETRY, CONFIG),
        kernel_file(settings, HOW, replace(GEOMETRY, width=64), CONFIG),
        kernel_file(settings, HOW, GEOMETRY, replace(CONFIG, num_layers=3)),
    }
    monkeypatch.setattr(torch, "__version__", "9.0.0")
    names.add(file())
    assert len(names) == 6
    assert all(name.name.startswith("lite-") and name.suffix == ".kernels" for name in names)


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from serve_app.config import ModelSettings
from serve_app.engine.engine import Engine
from unit.engines import spec, stream_calls, speech, play
checkpoint, cache = sys.argv[1:]
engine = Engine.load(ModelSettings(
    name="lite", checkpoint=checkpoint, device="cpu", threads=1, compile=True, compile_cache=cache))
engine.warm_up()
counted = counters["inductor"]
print(json.dumps([counted["fxgraph_cache_hit"], counted["fxgraph_cache_miss"]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """The real compiler: all of the first start is misses, all of the second hits."""
    checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "ckpt")
    config = checkpoint / "SoulX-FlashHead-1_3B/Model_Lite/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "height": 64, "width": 32}))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}

    def counts() -> list[int]:
        command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(tmp_path / "cache")]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    hits, misses = counts()
    assert hits == 0 and misses > 0
    [kept] = (tmp_path / "cache").glob("*.kernels")
    before = kept.read_bytes()
    assert counts() == [misses, 0]
    assert kept.read_bytes() == before
