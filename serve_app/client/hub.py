"""Files of a Hugging Face hub, or of a mirror that speaks its protocol.

``huggingface_hub`` finds a file, its size and its checksum, and knows about tokens and redirects. The bytes
are fetched here: its own download into a folder starts from the first byte again whenever it was
interrupted, and does not look at checksums.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from httpx2 import HTTPError as HubTransportError
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers

from serve_app import __version__
from serve_app.errors import FlashHeadError, Unavailable
from serve_app.model.released_files import Repository

TIMEOUT_S = 30.0
FAILURES = 5
"""Attempts in a row that bring no byte before a file is given up."""
FIRST_WAIT_S = 1.0
"""Before the second attempt; twice as long before each further one."""
BLOCK_BYTES = 1 << 20
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})

Progress = Callable[[int], None]
"""Told by how many bytes there are more (or fewer, where a file has to start again)."""


class DownloadError(FlashHeadError):
    """Files that cannot be had, however often it is tried."""

    default_code = "download_failed"


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest and what it is of: ``sha256`` of a file, or ``git``'s of a small one. Hexadecimal."""

    kind: str
    digest: str

    @staticmethod
    def from_etag(etag: str | None) -> Checksum | None:
        """What the hub's etag is: the sha256 of a large file, git's id of a small one. A mirror may have
        others, that say nothing."""
        if etag is not None and re.fullmatch(r"[0-9a-f]{64}", etag):
            return Checksum("sha256", etag)
        return Checksum("git", etag) if etag is not None and re.fullmatch(r"[0-9a-f]{40}", etag) else None

    def fits(self, path: Path) -> bool:
        """Whether the file at ``path`` has it; reads the whole file."""
        digest = hashlib.sha256() if self.kind == "sha256" else hashlib.sha1(usedforsecurity=False)
        if self.kind == "git":
            digest.update(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest() == self.digest


@dataclass(frozen=True, slots=True)
class Offer:
    """A file as the hub announces it."""

    url: str
    size: int
    checksum: Checksum | None


class Hub:
    """A hub.

    Args:
        endpoint: its address; ``HF_ENDPOINT`` or the public hub where absent.
        token: for repositories that want one; ``HF_TOKEN`` or what the hub's own command line keeps where
            absent.
    """

    def __init__(self, endpoint: str | None, token: str | None) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._headers = build_hf_headers(
            token=token, library_name="flashhead-serve", library_version=__version__
        )

    def offer(self, repository: Repository, name: str) -> Offer:
        """The file ``name`` of a repository.

        Raises:
            DownloadError: there is no such file, or not for this token.
            Unavailable: the hub cannot be reached.
        """
        url = hf_hub_url(repository.id, name, revision=repository.revision, endpoint=self._endpoint)
        try:
            known = get_hf_file_metadata(
                url, headers=self._headers, token=False, timeout=TIMEOUT_S, retry_on_errors=True
            )
        except HfHubHTTPError as error:
            raise _refusal(url, error.response.status_code) from error
        except (HubTransportError, OfflineModeIsEnabled) as error:
            raise Unavailable(f"{url}: {error}", value=url) from error
        except FileMetadataError as error:
            raise DownloadError(f"{url}: {error}", value=url) from error
        if known.size is None:
            raise DownloadError(f"{url}: the hub does not say how large it is", value=url)
        return Offer(url, known.size, Checksum.from_etag(known.etag))

    def fetch(self, offer: Offer, part: Path, progress: Progress) -> None:
        """Complete ``part``, from where it ends.

        Raises:
            DownloadError: the hub refuses, or sends something else.
            Unavailable: too many attempts in a row brought nothing; what there is of the file stays.
        """
        failures = 0
        while (have := part.stat().st_size if part.exists() else 0) < offer.size:
            cause: object = "the connection ended"
            try:
                self._append(offer, part, have, progress)
            except (httpx.TransportError, Unavailable) as error:
                cause = error
            size = part.stat().st_size if part.exists() else 0
            if size == offer.size:
                return
            failures = 1 if size > have else failures + 1
            if failures == FAILURES:
                message = f"{offer.url}: {cause}, after {size:,} of {offer.size:,} bytes"
                raise Unavailable(message, value=offer.url)
            time.sleep(FIRST_WAIT_S * 2 ** (failures - 1))

    def _append(self, offer: Offer, part: Path, have: int, progress: Progress) -> None:
        headers = {**self._headers, "accept-encoding": "identity", "range": f"bytes={have}-"}
        # The token is for the hub alone: httpx drops it where a redirect leads to another host.
        with httpx.stream(
            "GET", offer.url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
        ) as answer:
            if answer.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                raise _refusal(offer.url, answer.status_code)
            whole = answer.status_code == httpx.codes.OK
            if not whole and not answer.headers.get("content-range", "").startswith(f"bytes {have}-"):
                raise DownloadError(f"{offer.url}: sent another range than asked for", value=offer.url)
            with part.open("wb" if whole else "ab") as file:
                progress(-have if whole else 0)
                for block in answer.iter_raw():
                    if file.tell() + len(block) > offer.size:
                        raise DownloadError(f"{offer.url}: more than {offer.size:,} bytes", value=offer.url)
                    file.write(block)
                    progress(len(block))


def _refusal(url: str, status: int) -> FlashHeadError:
    if status in _TEMPORARY:
        return Unavailable(f"{url}: {status}", value=status)
    why = {401: "a token is needed, or this one is not known", 403: "this token may not have it"}
    return DownloadError(f"{url}: {status}, {why.get(status, 'there is no such file')}", value=status)
