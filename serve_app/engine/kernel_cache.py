"""Compiled kernels, kept on the model volume for all replicas.

A kernel file holds what ``torch.compile`` made for one model on one kind of device: torch's own cache
artifacts, tuning choices included, behind a checksum. The first replica that finds none compiles, while
others that want the same wait for it, and keeps the file; all later ones start from it. So a start does not
compile, and replicas run the same kernels: what a session's frames are does not depend on where it moves.

The file is code. Who may write to the volume decides what runs in the replicas.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from serve_app import __version__
from serve_app.config import ModelSettings
from serve_app.engine.precision import Execution
from serve_app.model.dit import DiTConfig
from serve_app.model.presets import checkpoint_root
from serve_app.types import Geometry

logger = logging.getLogger(__name__)

WAIT_S = 900.0
"""How long another replica's compilation is waited for at most; Lite's first took minutes elsewhere."""
POLL_S = 0.5
_CHECKSUM_BYTES = hashlib.sha256().digest_size

Artifacts = frozenset[tuple[str, str]]
"""Kind and key of each thing torch keeps."""


def kernel_file(
    settings: ModelSettings, how: Execution, geometry: Geometry, config: DiTConfig
) -> Path | None:
    """Where the kernels of a model run this way are kept; ``None`` if they are not.

    Its name tells model, dtype and device, and ends in a digest of all that kernels depend on: shapes,
    rows, device, the versions of torch, triton and this package.
    """
    folder = _folder(settings)
    if folder is None or not settings.compile:
        return None
    device, dtype = _device_name(how.device), str(how.dtype).removeprefix("torch.")
    versions = (__version__, torch.__version__, _triton_version())
    parts = (how.attention.__name__, settings.max_rows, astuple(geometry), config, versions, device)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    name = re.sub(r"[^a-z0-9]+", "-", f"{settings.name} {dtype} {device}".lower())
    return folder / f"{name}-{digest}.kernels"


def _folder(settings: ModelSettings) -> Path | None:
    if settings.compile_cache == "auto":
        embedded = settings.checkpoint == "embedded"
        return None if embedded else checkpoint_root(settings.checkpoint) / "compile-cache"
    return None if settings.compile_cache == "none" else Path(settings.compile_cache).expanduser()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} sm{major}{minor}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


class KernelCache:
    """One kernel file."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._now = now

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Compile within this context, and nothing before: kernels come from the file as far as it has
        them, and it has them all afterwards. A file or volume that cannot be used is logged and done
        without."""
        with ExitStack() as compiling:
            known = self._load()
            if known is None:
                compiling.enter_context(self._only_compiler())
                known = self._load()
            if known is None:
                _compile_in(Path(tempfile.mkdtemp(prefix="flashhead-kernels-")))
            yield
            self._keep(known or frozenset())

    def _load(self) -> Artifacts | None:
        """What the file has, ready for the compiler; ``None`` if there is no sound file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("compiled kernels in %s cannot be read: %s", self.path, error)
            return None
        checksum, artifacts = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        digest = hashlib.sha256(artifacts)
        if digest.digest() != checksum:
            logger.warning("compiled kernels in %s are damaged; they are compiled anew", self.path)
            return None
        _compile_in(_private_folder(digest.hexdigest()[:12]))
        info = torch.compiler.load_cache_artifacts(artifacts)
        if info is None:
            logger.warning("compiled kernels in %s are not for this torch; compiled anew", self.path)
            return None
        known = _entries(info.artifacts)
        logger.info("compiled kernels come from %s (%d entries)", self.path, len(known))
        return known

    def _keep(self, known: Artifacts) -> None:
        """Write the file if anything was compiled that it has not."""
        saved = torch.compiler.save_cache_artifacts()
        if saved is None or _entries(saved[1].artifacts) <= known:
            return
        artifacts, _ = saved
        written = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".", delete=False) as file:
                written = Path(file.name)
                file.write(hashlib.sha256(artifacts).digest() + artifacts)
                file.flush()
                os.fsync(file.fileno())
            written.chmod(0o644)
            written.replace(self.path)
        except OSError as error:
            logger.warning("compiled kernels are not kept for other replicas: %s", error)
            if written is not None:
                written.unlink(missing_ok=True)
        else:
            logger.info("compiled kernels are kept in %s (%d bytes)", self.path, len(artifacts))

    @contextmanager
    def _only_compiler(self) -> Iterator[None]:
        """Only one replica compiles this file at a time, as far as the volume has locks."""
        with ExitStack() as opened:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = opened.enter_context(self.path.with_suffix(".lock").open("a"))
                self._wait_for(lock.fileno())
            except OSError as error:
                logger.warning("kernels are compiled without a lock: %s", error)
            yield

    def _wait_for(self, lock: int) -> None:
        """Raises TimeoutError after ``WAIT_S``, OSError where the volume has no locks."""
        deadline = self._now() + WAIT_S
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._now() > deadline:
                    raise TimeoutError(f"{self.path} was still being compiled after {WAIT_S:g} s") from None
                time.sleep(POLL_S)


def _private_folder(content: str) -> Path:
    """A folder for the kernels of a file with that content: entries of another compilation might be taken
    instead, and whoever could write into it could run code here."""
    folder = Path(tempfile.gettempdir(), f"flashhead-kernels-{os.getuid()}-{content}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="flashhead-kernels-"))
    return folder


def _compile_in(folder: Path) -> None:
    """Let torch and triton keep their own files in ``folder``."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def _entries(artifacts: dict[str, list[str]]) -> Artifacts:
    return frozenset((kind, key) for kind, keys in artifacts.items() for key in keys)
