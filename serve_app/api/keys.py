"""API keys: the key file, and the set of keys that is in force while it changes.

A key file is YAML (or JSON, by its name's end)::

    keys:
      - name: studio                # says who calls, in logs and metrics
        key: sha256:2c26b46b68ff... # of the key's bytes, in hexadecimal; or the key itself
        requests_per_minute: 60     # no limit where absent
        burst: 10                   # requests at once after a pause; requests_per_minute where absent
        max_streams: 4              # running at once; no limit where absent
        models: [lite]              # any where absent

A directory is all its files together, hidden ones left out, as Kubernetes mounts a secret. Limits hold
for each Ingress replica by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from serve_app.errors import ConfigError

logger = logging.getLogger(__name__)

HASHED = "sha256:"
KEY = re.compile(r"[A-Za-z0-9._~+/-]{20,256}=*")
"""What a header carries as a Bearer token (RFC 6750), long enough not to be guessed."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_FILE_BYTES = 1024 * 1024


def new_key() -> str:
    """A key of 256 random bits."""
    return f"fh_{secrets.token_urlsafe(32)}"


def key_entry(name: str, key: str) -> str:
    """A key file with one entry: the hash of ``key``.

    Raises:
        ConfigError: the name is none for a key.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"name {name!r}: up to 64 letters, digits and - . _, a letter or digit first")
    return yaml.safe_dump({"keys": [{"name": name, "key": f"{HASHED}{digest(key)}"}]}, sort_keys=False)


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal. Keys are random and long: a slower hash would protect nothing."""
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def _as_digest(key: str) -> str:
    if key.startswith(HASHED):
        given = key.removeprefix(HASHED)
        if not re.fullmatch(r"[0-9a-f]{64}", given):
            raise ValueError("sha256: is followed by 64 hexadecimal digits in lower case")
        return given
    if not KEY.fullmatch(key):
        raise ValueError("a key has 20 to 256 letters, digits and - . _ ~ + / without spaces")
    return digest(key)


class _Strict(BaseModel):
    # An error must not repeat what it is about: that may be a key.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class KeyEntry(_Strict):
    """One key and what it is for. ``key`` is its digest, whichever way the file gives it."""

    name: str = Field(pattern=f"^{NAME}$")
    key: Annotated[str, AfterValidator(_as_digest)]
    requests_per_minute: float | None = Field(None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(None, ge=1)
    max_streams: int | None = Field(None, ge=1)
    models: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> KeyEntry:
        if self.burst is not None and self.requests_per_minute is None:
            raise ValueError("burst without requests_per_minute limits nothing")
        return self


class _KeyFile(_Strict):
    keys: Annotated[tuple[KeyEntry, ...], Strict(False)]


def read_keys(source: Path) -> tuple[KeyEntry, ...]:
    """The keys of a file, or of all files of a directory.

    Raises:
        ConfigError: it cannot be read or is no key file, or a name or a key occurs twice. The message
            repeats nothing of its content but names of fields.
    """
    files = [source]
    try:
        if source.is_dir():
            files = sorted(file for file in source.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror}") from None
    entries = tuple(entry for file in files for entry in _read_file(file))
    for what, values in (("name", [e.name for e in entries]), ("key", [e.key for e in entries])):
        if len(set(values)) != len(values):
            raise ConfigError(f"{source}: the same {what} is given to two entries")
    return entries


def _read_file(file: Path) -> tuple[KeyEntry, ...]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{file}: a key file has at most {MAX_FILE_BYTES} bytes")
        text = file.read_text("utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        return _KeyFile.model_validate(content).keys
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first_error(error)}") from None
    # PyYAML raises the last two over a value that is not what its tag says.
    except (ValueError, yaml.YAMLError, RecursionError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"{file}: not {'JSON' if file.suffix == '.json' else 'YAML'}{_line(error)}"
        ) from None


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where: tuple[Any, ...] = first["loc"]
    if first["type"] == "extra_forbidden":  # the field's name is not ours to repeat
        return ".".join(map(str, (*where[:-1], "?"))) + ": an unknown field"
    return f"{'.'.join(map(str, where)) or 'the whole'}: {first['msg']}"


def _line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f" at line {error.problem_mark.line + 1}"
    return f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""


class KeyRing:
    """The keys in force: those of the source when it could last be read; none before that."""

    def __init__(self, source: Path, reload_s: float) -> None:
        self._source = source
        self._reload_s = reload_s
        self._entries: tuple[KeyEntry, ...] = ()
        self._complaint = ""

    def identify(self, key: str) -> KeyEntry | None:
        """The entry of a key, or None. It takes as long whichever key it is."""
        presented, found = digest(key), None
        for entry in self._entries:
            if hmac.compare_digest(entry.key, presented):
                found = entry
        return found

    def load(self) -> None:
        """Read the source; one that cannot be read leaves the keys as they are, and is logged once."""
        try:
            entries = read_keys(self._source)
        except ConfigError as error:
            if self._complaint != error.message:
                logger.error("keys: %s; the %d read before stay in force", error, len(self._entries))
            self._complaint = error.message
            return
        if entries != self._entries or self._complaint:
            logger.info("keys in force: %s", ", ".join(entry.name for entry in entries) or "none")
        self._entries, self._complaint = entries, ""

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """For the time of the context the set is as the source is.

        The content is compared, not the file's time: Kubernetes swaps a link above it, and editors write
        within the resolution of a time stamp.
        """
        self.load()
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._reload_s)
            try:
                await asyncio.to_thread(self.load)
            except Exception as error:
                # A watch that ended would leave keys in force that were taken away. No traceback: it may
                # hold what the file does.
                logger.error("keys: not read: %s; they are looked at again", type(error).__name__)
