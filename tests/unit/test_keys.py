"""Key files: what they may hold, what errors may not repeat, how a changed one comes into force."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.api import keys
from serve_app.api.keys import KeyEntry, KeyRing, digest, new_key, read_keys
from serve_app.api.quota import Quotas
from serve_app.errors import ConfigError, RateLimited

STUDIO, PARTNER = "fh_" + "studio." * 6, "fh_" + "partner." * 5


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"keys": list(entries)}))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    entry = {"name": "studio", "key": f"sha256:{digest(STUDIO)}", "models": ["lite"], "max_streams": 2}
    return write(tmp_path / "keys.yaml", entry, {"name": "partner", "key": PARTNER})


def test_plain_and_hashed_keys_are_read_as_digests(file: Path) -> None:
    studio, partner = read_keys(file)
    assert (studio.name, studio.key, studio.models) == ("studio", digest(STUDIO), ("lite",))
    assert (partner.key, partner.models, partner.requests_per_minute) == (digest(PARTNER), None, None)
    assert PARTNER not in repr(partner)


def test_a_new_key_is_a_key_and_no_other_is_the_same(tmp_path: Path) -> None:
    one, other = new_key(), new_key()
    assert one != other
    [entry] = read_keys(write(tmp_path / "keys.yaml", {"name": "new", "key": one}))
    assert entry.key == digest(one)


def test_json_is_read_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{"name": "studio", "key": STUDIO}]}, indent="\t"))
    assert [entry.name for entry in read_keys(file)] == ["studio"]


def test_a_directory_is_all_its_files_but_the_hidden(tmp_path: Path) -> None:
    write(tmp_path / "b", {"name": "partner", "key": PARTNER})
    write(tmp_path / "a.yaml", {"name": "studio", "key": STUDIO})
    write(tmp_path / ".a.yaml.swp", {"name": "hidden", "key": "hidden" * 5})
    (tmp_path / "..data").mkdir()
    assert [entry.name for entry in read_keys(tmp_path)] == ["studio", "partner"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the whole"),
        ("[]", "the whole"),
        ("keys: [", "not YAML at line 1"),
        ("keys:\n  - name: a\n   key: b\n", "not YAML at line 3"),
        ("keys: [{name: a}]", "keys.0.key: Field required"),
        (f"keys: [{{key: {STUDIO}}}]", "keys.0.name: Field required"),
        (f"keys: [{{name: a b, key: {STUDIO}}}]", "keys.0.name"),
        ("keys: [{name: a, key: short}]", "keys.0.key: Value error, a key has 20 to 256"),
        ("keys: [{name: a, key: 12345678901234567890}]", "keys.0.key: Input should be a valid string"),
        (f"keys: [{{name: a, key: 'sha256:{STUDIO}'}}]", "64 hexadecimal digits"),
        (f"keys: [{{name: a, key: {STUDIO}, rate: 3}}]", "keys.0.?: an unknown field"),
        (f"keys: [{{name: a, key: {STUDIO}, max_streams: 0}}]", "keys.0.max_streams"),
        (f"keys: [{{name: a, key: {STUDIO}, max_streams: true}}]", "keys.0.max_streams"),
        (f"keys: [{{name: a, key: {STUDIO}, requests_per_minute: .inf}}]", "keys.0.requests_per_minute"),
        (f"keys: [{{name: a, key: {STUDIO}, burst: 3}}]", "burst without requests_per_minute"),
        (f"keys: [{{name: a, key: {STUDIO}, models: []}}]", "keys.0.models"),
        (f"keys: [{{name: a, key: {STUDIO}}}, {{name: b, key: {STUDIO}}}]", "the same key"),
        (f"keys: [{{name: a, key: {STUDIO}}}, {{name: a, key: {PARTNER}}}]", "the same name"),
        (f"keys: []\n{STUDIO}: studio", "?: an unknown field"),
        (f"keys: {{{STUDIO}: studio}}", "keys: Input should be a valid tuple"),
        (f"keys: [{{name: {STUDIO}+, key: studio}}]", "keys.0.name"),
        (f"keys: *{STUDIO}", "not YAML at line 1"),
        (f"keys: !!bool {STUDIO}", "not YAML"),
        (f"keys: !!timestamp {STUDIO}", "not YAML"),
    ],
)
def test_what_is_wrong_is_said_without_repeating_it(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_keys(file)
    assert said in str(raised.value) and str(file) in str(raised.value)
    assert STUDIO not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(tmp_path / "nowhere.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not YAML"):
        read_keys(tmp_path / "binary")
    (tmp_path / "long").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        read_keys(tmp_path / "long")


def test_a_directory_that_cannot_be_listed_leaves_the_keys_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.yaml", {"name": "studio", "key": STUDIO})
    ring = KeyRing(tmp_path, reload_s=2)
    ring.load()

    def gone(folder: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr(Path, "iterdir", gone)
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(tmp_path)
    ring.load()
    assert ring.identify(STUDIO) is not None


def test_a_ring_knows_its_keys_and_no_other(file: Path) -> None:
    ring = KeyRing(file, reload_s=1)
    assert ring.identify(STUDIO) is None
    ring.load()
    found = [ring.identify(key) for key in (STUDIO, PARTNER, new_key(), "", digest(STUDIO), "é")]
    assert [entry and entry.name for entry in found] == ["studio", "partner", None, None, None, None]


def test_a_broken_file_leaves_the_keys_in_force_and_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing(file, reload_s=1)
    ring.load()
    caplog.set_level(logging.INFO)
    caplog.clear()
    good = file.read_text()
    for content in ("keys: [", "keys: [", None, None):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        ring.load()
        assert ring.identify(STUDIO) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    file.write_text(good)
    ring.load()
    ring.load()
    assert caplog.messages[2:] == ["keys in force: studio, partner"]
    file.write_text("keys: []")
    ring.load()
    assert ring.identify(STUDIO) is None


def test_a_watch_goes_on_after_a_failure_it_has_no_name_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, failures = keys.read_keys, [MemoryError(STUDIO), RuntimeError(STUDIO)]

    def failing(source: Path) -> tuple[KeyEntry, ...]:
        if failures:
            raise failures.pop()
        return read(source)

    ring = KeyRing(file, reload_s=0.01)

    async def watching() -> None:
        async with ring.watched():
            assert ring.identify(STUDIO) is not None
            monkeypatch.setattr(keys, "read_keys", failing)
            write(file)
            await asyncio.to_thread(wait_until, lambda: ring.identify(STUDIO) is None)

    asyncio.run(watching())
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert STUDIO not in caplog.text


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kubernetes_swaps_a_link_above_the_file(tmp_path: Path) -> None:
    for version, key in (("..1", STUDIO), ("..2", PARTNER)):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "keys.yaml", {"name": "studio", "key": key})
    data = tmp_path / "..data"
    data.symlink_to("..1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    rings = [KeyRing(source, reload_s=1) for source in (tmp_path, tmp_path / "keys.yaml")]
    for ring in rings:
        ring.load()
        assert ring.identify(STUDIO) and not ring.identify(PARTNER)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(data)
    for ring in rings:
        ring.load()
        assert ring.identify(PARTNER) and not ring.identify(STUDIO)


class Hands:
    """A clock moved by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def entry(**limits: Any) -> KeyEntry:
    return KeyEntry(name="studio", key=STUDIO, **limits)


def spend(quotas: Quotas, limited: KeyEntry, at_most: int = 1000) -> int:
    """How many requests pass before one is refused."""
    for count in range(at_most):
        try:
            quotas.spend_request(limited)
        except RateLimited:
            return count
    return at_most


def test_a_rate_allows_its_burst_and_then_its_pace() -> None:
    clock = Hands()
    quotas, limited = Quotas(clock), entry(requests_per_minute=30, burst=5)
    assert spend(quotas, limited) == 5
    with pytest.raises(RateLimited) as refused:
        quotas.spend_request(limited)
    assert refused.value.retry_after_s == 2
    clock.now_s += 2
    assert spend(quotas, limited) == 1
    clock.now_s += 3600
    assert spend(quotas, limited) == 5


@pytest.mark.parametrize(("rate", "burst"), [(30, 30), (0.5, 1)])
def test_without_a_burst_a_minute_may_come_at_once(rate: float, burst: int) -> None:
    assert spend(Quotas(Hands()), entry(requests_per_minute=rate)) == burst


def test_no_rate_no_limit() -> None:
    assert spend(Quotas(Hands()), entry()) == 1000


def test_use_is_counted_by_name_through_a_change_of_the_key() -> None:
    quotas = Quotas(Hands())
    assert spend(quotas, entry(requests_per_minute=60, burst=3)) == 3
    quotas.begin_stream("studio")
    renewed = KeyEntry(name="studio", key=PARTNER, requests_per_minute=60, burst=3, max_streams=1)
    assert spend(quotas, renewed) == 0
    with pytest.raises(RateLimited, match="1 streams"):
        quotas.check_streams(renewed)
    quotas.end_stream("studio")
    quotas.check_streams(renewed)
