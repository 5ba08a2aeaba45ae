"""Released weights into a directory: complete, checked, resumed where a download was interrupted.

A file appears under its name only when all of it is there and its checksum is right; until then it is a
hidden ``.part``. What has been checked once is written down with size and time of change, so that the next
run need not read it again, nor ask the hub.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from serve_app.client.hub import Checksum, DownloadError, Hub, Offer
from serve_app.errors import Unavailable
from serve_app.model.presets import RELEASE_DIR
from serve_app.model.released_files import REPOSITORIES, ReleasedFile, Repository, files_of

RECEIPTS = ".flashhead-serve-download.json"
LOCK = ".flashhead-serve-download.lock"
TERMINAL_INTERVAL_S, LOG_INTERVAL_S = 0.2, 10.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is known of a file that was checked: the file itself, and what it was checked against."""

    revision: str
    size: int
    mtime_ns: int
    checksum: str


def download(models: Sequence[str], root: Path, hub: Hub, revision: str | None = None) -> None:
    """Put the files of ``models`` below ``root``, in the released layout.

    Args:
        revision: of the FlashHead repository, in place of the one whose checksums are known here.

    Raises:
        OutOfRange: a model whose weights cannot be downloaded.
        DownloadError: not enough space, a refusal, a wrong checksum, or another file in a file's place.
        Unavailable: the hub cannot be reached, or another download is at work; trying again goes on.
    """
    files = files_of(models)
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        Download(root, hub, revision).run(files)


class Download:
    """One run of ``download``; it has ``root`` for itself."""

    def __init__(self, root: Path, hub: Hub, revision: str | None) -> None:
        self._root = root
        self._hub = hub
        self._revision = revision
        self._receipts = _read_receipts(root / RECEIPTS)

    def run(self, files: Sequence[ReleasedFile]) -> None:
        """Complete ``files``."""
        wanted = [(file, offer) for file in files if (offer := self._missing(file)) is not None]
        self._check_space(wanted)
        for file, offer in wanted:
            self._fetch(file, offer)

    def _missing(self, file: ReleasedFile) -> Offer | None:
        """What the hub has in the place of a file that is not there yet."""
        path, repository = self._root / file.path, self._repository(file)
        receipt = self._receipts.get(file.path)
        untouched = receipt is not None and path.is_file() and _is(path, receipt)
        if receipt and untouched and _is_commit(repository) and receipt.revision == repository.revision:
            print(f"{file.path}: there, {receipt.size:,} bytes")
            return None
        offer = self._offer(file, repository)
        if not path.exists() or (untouched and receipt and receipt.checksum != _told(offer.checksum)):
            return offer
        if path.stat().st_size != offer.size or (offer.checksum and not offer.checksum.fits(path)):
            message = f"{path} is another file than the one to download; move it away or choose another --to"
            raise DownloadError(message, value=str(path))
        self._sign(file, offer)
        print(f"{file.path}: there, checked, {offer.size:,} bytes")
        return None

    def _offer(self, file: ReleasedFile, repository: Repository) -> Offer:
        """The hub's offer, held to what is known of the released file."""
        offer = self._hub.offer(repository, file.name)
        if repository != REPOSITORIES[file.folder]:
            return offer
        known = Checksum("sha256", file.sha256) if file.sha256 else None
        told = offer.checksum
        contradicts = known and told and told.kind == known.kind and told != known
        if offer.size != file.size or contradicts:
            message = (
                f"{offer.url}: {offer.size:,} bytes, checksum {_told(told)}; "
                f"released were {file.size:,} bytes, checksum {_told(known)}"
            )
            raise DownloadError(message, value=offer.url)
        return Offer(offer.url, offer.size, known or told)

    def _check_space(self, wanted: Sequence[tuple[ReleasedFile, Offer]]) -> None:
        parts = [self._part(file, offer) for file, offer in wanted]
        there = sum(part.stat().st_size for part in parts if part.exists())
        needed = sum(offer.size for _, offer in wanted) - there
        free = shutil.disk_usage(self._root).free
        if needed > free:
            message = f"{self._root} has {free:,} bytes free, {needed:,} are still to be downloaded"
            raise DownloadError(message, value=free, accepted=needed)

    def _fetch(self, file: ReleasedFile, offer: Offer) -> None:
        path, part = self._root / file.path, self._part(file, offer)
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in set(path.parent.glob(f".{path.name}.*.part")) - {part}:
            stale.unlink()
        have = part.stat().st_size if part.exists() else 0
        interval_s = TERMINAL_INTERVAL_S if sys.stderr.isatty() else LOG_INTERVAL_S
        with tqdm(
            desc=file.path,
            total=offer.size,
            initial=have,
            unit="B",
            unit_scale=True,
            mininterval=interval_s,
            maxinterval=interval_s,
        ) as bar:
            self._hub.fetch(offer, part, bar.update)
        if part.stat().st_size != offer.size or (offer.checksum and not offer.checksum.fits(part)):
            part.unlink()
            message = f"{offer.url}: what was sent has not the checksum {_told(offer.checksum)}"
            raise DownloadError(message, value=offer.url)
        _flush(part)
        part.replace(path)
        self._sign(file, offer)
        print(f"{file.path}: downloaded, {offer.size:,} bytes, {_told(offer.checksum)}")

    def _part(self, file: ReleasedFile, offer: Offer) -> Path:
        """Where a file grows. Another content grows elsewhere."""
        path = self._root / file.path
        content = offer.checksum.digest[:16] if offer.checksum else str(offer.size)
        return path.with_name(f".{path.name}.{content}.part")

    def _repository(self, file: ReleasedFile) -> Repository:
        repository = REPOSITORIES[file.folder]
        if self._revision is None or file.folder != RELEASE_DIR:
            return repository
        return Repository(repository.id, self._revision)

    def _sign(self, file: ReleasedFile, offer: Offer) -> None:
        status = (self._root / file.path).stat()
        revision = self._repository(file).revision
        self._receipts[file.path] = Receipt(
            revision, status.st_size, status.st_mtime_ns, _told(offer.checksum)
        )
        draft = self._root / f"{RECEIPTS}.new"
        receipts = {path: asdict(receipt) for path, receipt in sorted(self._receipts.items())}
        draft.write_text(json.dumps(receipts, indent=2))
        _flush(draft)
        draft.replace(self._root / RECEIPTS)


def _read_receipts(path: Path) -> dict[str, Receipt]:
    """None where there are none, or none that can be read: then files are checked again."""
    try:
        return {name: Receipt(**fields) for name, fields in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        print(f"{path} is damaged ({error}): all files are checked again", file=sys.stderr)
        return {}


def _is(path: Path, receipt: Receipt) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (receipt.size, receipt.mtime_ns)


def _is_commit(repository: Repository) -> bool:
    """Whether the revision names one content for ever, as no branch or tag does."""
    return re.fullmatch(r"[0-9a-f]{40}", repository.revision) is not None


def _told(checksum: Checksum | None) -> str:
    return f"{checksum.kind} {checksum.digest}" if checksum else "unknown"


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """No other download writes below ``root``, as far as its volume has locks."""
    with (root / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another download writes to {root}", value=str(root)) from None
        except OSError as error:
            print(f"{root} has no locks ({error}): let no other download write there", file=sys.stderr)
        yield
