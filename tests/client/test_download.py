"""``flashhead-serve download`` against a hub on this machine: what arrives, and all that can go wrong."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from client.hub_server import LARGE_BYTES, HubServer, running, sha256

from serve_app.cli import TRY_AGAIN, _parser, main
from serve_app.client import download, hub
from serve_app.model import released_files
from serve_app.model.released_files import DOWNLOADABLE, RELEASED, REPOSITORIES, files_of

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "ckpt"
DIT = "SoulX-FlashHead-1_3B/Model_Lite/diffusion_pytorch_model.safetensors"
CONFIG = "SoulX-FlashHead-1_3B/Model_Lite/config.json"


def key(path: str) -> str:
    """A file's key at the hub."""
    folder, _, name = path.partition("/")
    return f"{REPOSITORIES[folder].id}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a miniature release; nothing is waited for."""
    contents = {file.path: (CHECKPOINT / file.path).read_bytes() for file in RELEASED}
    release = tuple(
        replace(file, size=len(contents[file.path]), sha256=file.sha256 and sha256(contents[file.path]))
        for file in RELEASED
    )
    monkeypatch.setattr(released_files, "RELEASED", release)
    monkeypatch.setattr(hub, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with running(HubServer({key(path): content for path, content in contents.items()})) as hub_server:
        yield hub_server


def run(server: HubServer, to: Path, *more: Any, models: str = "lite") -> int:
    words = ["download", "--models", models, "--to", to, "--endpoint", server.url, *more]
    return main([str(word) for word in words])


def visible(to: Path) -> dict[str, bytes]:
    """What looks like a file of the release below ``to``."""
    found = (path for path in to.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(to).as_posix(): path.read_bytes() for path in found}


def parts(to: Path) -> list[Path]:
    return list(to.rglob("*.part"))


def needed(*models: str) -> dict[str, bytes]:
    return {file.path: (CHECKPOINT / file.path).read_bytes() for file in files_of(models)}


@pytest.mark.parametrize("models", ["lite", "pro", "lite,pro"])
def test_what_the_models_need_arrives_and_nothing_else(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: str
) -> None:
    assert run(server, tmp_path / "new" / "models", models=models) == 0
    assert visible(tmp_path / "new" / "models") == needed(*models.split(","))
    assert parts(tmp_path) == []
    output = capsys.readouterr().out
    assert all(f"{name}: complete" in output for name in models.split(","))
    assert "tiny" not in output, "the report is about what was asked for"


def test_the_second_run_neither_reads_nor_asks(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(server, tmp_path) == 0
    server.log.clear()
    monkeypatch.setattr(hub.Checksum, "fits", lambda *_: pytest.fail("read again"))
    assert run(server, tmp_path) == 0
    assert server.log == []


def test_a_changed_file_is_found_and_left_to_its_owner(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, tmp_path) == 0
    content = (tmp_path / DIT).read_bytes()
    (tmp_path / DIT).write_bytes(content[:-1] + b"!")
    assert run(server, tmp_path) == 1
    assert "another file than the one to download; move it away" in capsys.readouterr().err
    assert (tmp_path / DIT).read_bytes().endswith(b"!")


def test_files_that_came_another_way_are_checked_and_kept(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / DIT).parent.mkdir(parents=True)
    shutil.copy(CHECKPOINT / DIT, tmp_path / DIT)
    assert run(server, tmp_path) == 0
    assert Path(DIT).name not in [name for name, _ in server.fetches() if "Model_Lite" in name]
    assert ("GET", DIT) not in {(method, path) for method, _, path, _, _ in server.log}
    assert visible(tmp_path) == needed("lite")


def test_an_interrupted_download_goes_on_where_it_ended(server: HubServer, tmp_path: Path) -> None:
    server.cut[key(DIT)] = [5000, 7000]
    assert run(server, tmp_path) == 0
    ranges = [asked for _, host, path, asked, _ in server.log if host == "localhost" and key(DIT) in path]
    assert ranges == ["bytes=0-", "bytes=5000-", "bytes=12000-"]
    assert visible(tmp_path) == needed("lite")


def test_a_later_run_goes_on_too(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cut[key(DIT)] = [5000] + [0] * hub.FAILURES
    assert run(server, tmp_path) == TRY_AGAIN
    assert "the same command goes on from here" in capsys.readouterr().err
    assert DIT not in visible(tmp_path), "half a file never looks complete"
    assert [part.stat().st_size for part in parts(tmp_path)] == [5000]
    server.cut.clear()
    assert run(server, tmp_path) == 0
    asked = [asked for _, host, path, asked, _ in server.log if host == "localhost" and key(DIT) in path]
    assert asked[-1] == "bytes=5000-"
    assert visible(tmp_path) == needed("lite") and parts(tmp_path) == []


def test_a_mirror_that_knows_no_ranges_sends_all_again(server: HubServer, tmp_path: Path) -> None:
    server.ignores_ranges = True
    server.cut[key(DIT)] = [5000]
    assert run(server, tmp_path) == 0
    assert visible(tmp_path) == needed("lite")


@pytest.mark.parametrize("spoilt", ["other", "longer", "small"])
def test_wrong_content_never_appears(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoilt: str
) -> None:
    path = CONFIG if spoilt == "small" else DIT
    content = server.files[key(path)]
    server.sent[key(path)] = content + b"!" if spoilt == "longer" else bytes([content[0] ^ 1]) + content[1:]
    assert run(server, tmp_path) == 1
    error = capsys.readouterr().err
    assert ("more than" if spoilt == "longer" else "has not the checksum") in error
    assert path not in visible(tmp_path)
    server.sent.clear()
    assert run(server, tmp_path) == (1 if spoilt == "longer" and parts(tmp_path) else 0)


def test_a_mirror_with_another_file_is_refused_before_any_byte(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = server.files[key(DIT)]
    server.files = {**server.files, key(DIT): content[:-1] + b"!"}
    assert run(server, tmp_path) == 1
    assert "released were" in capsys.readouterr().err
    server.files = {**server.files, key(DIT): content + b"!"}
    assert run(server, tmp_path) == 1
    assert server.fetches() == []


def test_a_mirror_without_checksums_is_held_to_the_known_ones(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.opaque_etags = True
    server.sent[key(DIT)] = bytes(len(server.files[key(DIT)]))
    assert run(server, tmp_path) == 1
    assert "has not the checksum sha256" in capsys.readouterr().err
    server.sent.clear()
    assert run(server, tmp_path) == 0


def test_a_token_is_no_argument(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(server, tmp_path, "--token", "secret")


def test_the_token_opens_the_hub_and_goes_nowhere_else(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server.token = "hf_secret"
    assert run(server, tmp_path) == 1
    assert "401, a token is needed, or this one is not known" in capfd.readouterr().err
    token = tmp_path / "token"
    token.write_text("hf_wrong\n")
    assert run(server, tmp_path, "--token-file", token) == 1
    token.write_text("hf_secret\n")
    assert run(server, tmp_path / "by file", "--token-file", token) == 0
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_environment", lambda: "hf_secret")
    assert run(server, tmp_path / "by environment") == 0
    large = [with_token for _, host, _, _, with_token in server.log if host == "localhost"]
    assert large and not any(large)
    assert "hf_" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_tried_again(server: HubServer, tmp_path: Path, status: int) -> None:
    server.statuses = [status] * (hub.FAILURES - 1)
    assert run(server, tmp_path) == 0
    assert visible(tmp_path) == needed("lite")


def test_a_file_that_is_refused_is_not_tried_again(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses = [403]
    assert run(server, tmp_path) == 1
    assert "403, this token may not have it" in capsys.readouterr().err
    assert len(server.fetches()) == 1


def test_a_hub_out_of_reach_is_worth_another_try(tmp_path: Path, server: HubServer) -> None:
    server.url = "http://127.0.0.1:9"
    assert run(server, tmp_path) == TRY_AGAIN


def test_a_file_the_hub_has_not(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files = {name: content for name, content in server.files.items() if name != key(DIT)}
    assert run(server, tmp_path) == 1
    assert "404, there is no such file" in capsys.readouterr().err


def test_space_is_looked_at_before_any_byte(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    total = sum(len(content) for content in needed("lite").values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=total - 1))
    assert run(server, tmp_path) == 1
    assert f"{total - 1:,} bytes free, {total:,} are still to be downloaded" in capsys.readouterr().err
    assert server.fetches() == []
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=total))
    assert run(server, tmp_path) == 0


def test_only_one_download_writes_at_a_time(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / download.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(server, tmp_path) == TRY_AGAIN
    assert "another download writes to" in capsys.readouterr().err


def test_another_revision_is_held_to_the_hubs_own_checksums(server: HubServer, tmp_path: Path) -> None:
    newer = server.files[key(DIT)][:-1] + b"!"
    assert run(server, tmp_path, "--revision", "main") == 0
    server.log.clear()
    assert run(server, tmp_path, "--revision", "main") == 0
    assert {method for method, *_ in server.log} == {"HEAD"}, "a branch moves: the hub is asked"
    assert all("/resolve/main/" in path for _, _, path, _, _ in server.log)
    server.files = {**server.files, key(DIT): newer}
    assert run(server, tmp_path, "--revision", "main") == 0
    assert (tmp_path / DIT).read_bytes() == newer
    assert [name for name, _ in server.fetches()] == [Path(DIT).name]


def test_a_damaged_receipt_means_checking_again(server: HubServer, tmp_path: Path) -> None:
    assert run(server, tmp_path) == 0
    (tmp_path / download.RECEIPTS).write_text("{")
    server.log.clear()
    assert run(server, tmp_path) == 0
    assert server.fetches() == []
    assert set(json.loads((tmp_path / download.RECEIPTS).read_text())) == set(needed("lite"))


@pytest.mark.parametrize("models", ["tiny", "lite,pretrained", ""])
def test_models_that_cannot_be_downloaded(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: str
) -> None:
    assert run(server, tmp_path, models=models) == 1
    assert "accepted: lite, pro" in capsys.readouterr().err


def test_the_table_covers_all_that_is_loaded() -> None:
    """Every file a model is loaded from, as published: 8.2 GB for Lite, 6.9 GB for Pro."""
    assert [round(sum(file.size for file in files_of([name])) / 1e9, 1) for name in DOWNLOADABLE] == [
        8.2,
        6.9,
    ]
    assert all(file.sha256 for file in RELEASED if file.size > LARGE_BYTES)
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in RELEASED if file.sha256)


def test_every_download_command_that_is_written_down_is_one() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "cluster").rglob("*.md")]
    commands = [
        found
        for page in pages
        for found in re.findall(r"flashhead-serve (download(?: [^`\n\\]+|\\\n)+)", page.read_text())
    ]
    assert commands
    for command in commands:
        options = _parser().parse_args(shlex.split(command.replace("\\\n", " ")))
        assert files_of(options.models)
