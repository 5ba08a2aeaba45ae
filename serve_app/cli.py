"""``flashhead-serve``: start the graph, animate, get and look at weights, check configs, make API keys."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app import __version__
from serve_app.errors import ConfigError, FlashHeadError, Unavailable

if TYPE_CHECKING:
    from serve_app.client.server import Overrides
    from serve_app.model.weight_report import WeightReport

DEFAULT_CONFIG = Path("configs/serve.yaml")
START_TIMEOUT_S = 300.0
TRY_AGAIN = 75
"""sysexits' EX_TEMPFAIL."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (FlashHeadError, OSError) as error:
        print(f"flashhead-serve: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flashhead-serve", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="start the graph and keep it running")
    _add_server_options(serve)
    serve.set_defaults(command=_serve)

    animate = commands.add_parser("animate", help="animate a portrait, through a server or in this process")
    _add_animation_options(animate)
    animate.add_argument(
        "--url", help="a running server, such as http://127.0.0.1:8000; in-process if absent"
    )
    animate.add_argument(
        "--checkpoint", default="embedded", metavar="DIR", help="weights in the released layout (in-process)"
    )
    animate.set_defaults(command=_animate)

    demo = commands.add_parser("demo", help="start the graph, animate once through it, stop it")
    _add_server_options(demo)
    _add_animation_options(demo)
    demo.set_defaults(command=_demo)

    download = commands.add_parser(
        "download", help="download released weights and check them", allow_abbrev=False
    )
    _add_download_options(download)
    download.set_defaults(command=_download)

    check = commands.add_parser(
        "check-weights", help="say which models a directory holds, from headers alone"
    )
    check.add_argument("directory", type=Path)
    check.add_argument(
        "--models", type=_names, metavar="NAMES", help="all of these must be complete; any one if absent"
    )
    check.set_defaults(command=_check_weights)

    config = commands.add_parser("check-config", help="say what is wrong with a Serve config")
    config.add_argument("file", type=Path)
    config.add_argument("--strict", action="store_true", help="warnings fail, too")
    config.add_argument("--gpus", type=int, metavar="N", help="check that the fewest replicas fit on N GPUs")
    config.set_defaults(command=_check_config)

    key = commands.add_parser("new-key", help="make an API key, and its entry for a key file")
    key.add_argument("name", help="whose it is, as logs and metrics will say")
    key.set_defaults(command=_new_key)
    return parser


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="Serve config (default: %(default)s)"
    )
    parser.add_argument("--host", help="address to listen on, in place of the config's")
    parser.add_argument("--port", type=int, help="port to listen on, in place of the config's")
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--keys", type=Path, metavar="FILE", help="key file; every request then needs a key")
    access.add_argument("--insecure-no-keys", action="store_true", help="let anybody in, on any address")


def _add_animation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, required=True, help="portrait: PNG, JPEG or WebP")
    parser.add_argument("--audio", type=Path, required=True, help="speech: WAV, MP3, FLAC, OGG, M4A, WebM")
    parser.add_argument("--out", type=Path, required=True, help="video to write: .webm or .mp4")
    parser.add_argument("--model", help="a served model; without a server: tiny, lite or pro")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, help="denoising steps; the model's own if absent")
    parser.add_argument("--audio-encode", choices=["stream", "once"], default="stream")
    parser.add_argument("--face-crop", action="store_true", help="crop the portrait around its largest face")


def _add_download_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=_names, default=["lite"], help="lite, pro or lite,pro")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="checkpoint directory to fill")
    parser.add_argument("--endpoint", metavar="URL", help="a mirror of the hub; else HF_ENDPOINT")
    # A token itself is no argument: every user of the machine sees those.
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="holds an access token of the hub; else HF_TOKEN"
    )
    parser.add_argument("--revision", help="of the FlashHead repository, in place of the release known here")


def _names(value: str) -> list[str]:
    return value.split(",")


def _serve(options: argparse.Namespace) -> int:
    from serve_app.client.server import run_server

    return run_server(options.config, _overrides(options))


def _overrides(options: argparse.Namespace) -> Overrides:
    from serve_app.client.server import Overrides

    return Overrides(options.host, options.port, options.keys, options.insecure_no_keys)


def _demo(options: argparse.Namespace) -> int:
    from serve_app.client.server import running_server

    _container(options.out)
    log = options.out.with_suffix(".log")
    print(f"starting the graph of {options.config}; its log is {log}", flush=True)
    with running_server(options.config, _overrides(options), START_TIMEOUT_S, log) as url:
        return _animate_remotely(url, options)


def _animate(options: argparse.Namespace) -> int:
    if options.url:
        return _animate_remotely(options.url.rstrip("/"), options)
    return asyncio.run(_animate_here(options))


def _animate_remotely(url: str, options: argparse.Namespace) -> int:
    from serve_app.client import remote
    from serve_app.client.progress import ProgressBar

    fields = {
        "seed": options.seed,
        "format": _container(options.out),
        "audio_encode": options.audio_encode,
        "face_crop": str(options.face_crop).lower(),
        **{name: value for name in ("model", "steps") if (value := getattr(options, name)) is not None},
    }
    with ProgressBar() as bar:
        video = remote.animate(url, options.image, options.audio, fields, bar.update, START_TIMEOUT_S)
    return _write(options.out, video, bar.summary())


async def _animate_here(options: argparse.Namespace) -> int:
    from serve_app.client.local import local_stage
    from serve_app.client.progress import ProgressBar
    from serve_app.config import Limits, ModelSettings, VideoSettings
    from serve_app.session.animation import Animation, AnimationRequest

    model = ModelSettings(name=options.model or "tiny", checkpoint=options.checkpoint)
    request = AnimationRequest(
        session_id="local",
        image=options.image.read_bytes(),
        audio=options.audio.read_bytes(),
        seed=options.seed,
        steps=options.steps,
        container=_container(options.out),
        audio_encode=options.audio_encode,
        face_crop=options.face_crop,
        live=False,
    )
    async with local_stage(model, Limits(), VideoSettings()) as stage:
        animation = await Animation.prepare(request, stage)
        with ProgressBar() as bar:
            video = await animation.render(bar.update)
    return _write(options.out, video, bar.summary())


def _container(out: Path) -> Any:
    if out.suffix not in (".webm", ".mp4"):
        raise FlashHeadError(f"--out {out}: the name must end in .webm or .mp4")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.suffix[1:]


def _write(out: Path, video: bytes, summary: str) -> int:
    out.write_bytes(video)
    print(f"{out}: {summary}, {len(video):,} bytes")
    return 0


def _download(options: argparse.Namespace) -> int:
    """``TRY_AGAIN`` where the same command later may do what it could not do now."""
    from serve_app.client.download import download
    from serve_app.client.hub import Hub
    from serve_app.model.weight_report import check_weights

    token = options.token_file.read_text().strip() if options.token_file else None
    try:
        download(options.models, options.to, Hub(options.endpoint, token), options.revision)
    except Unavailable as error:
        print(f"flashhead-serve: {error}; the same command goes on from here", file=sys.stderr)
        return TRY_AGAIN
    return _told(check_weights(options.to).of(options.models))


def _check_weights(options: argparse.Namespace) -> int:
    from serve_app.model.weight_report import check_weights

    report = check_weights(options.directory)
    return _told(report.of(options.models) if options.models else report)


def _told(report: WeightReport) -> int:
    print(report.to_text())
    return 0 if report.complete else 1


def _check_config(options: argparse.Namespace) -> int:
    from serve_app.check.report import check_config

    try:
        text = options.file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{options.file}: not UTF-8: {error.reason} at byte {error.start}") from None
    report = check_config(text, options.gpus)
    print(report.to_text(str(options.file)))
    return int(report.fails(options.strict))


def _new_key(options: argparse.Namespace) -> int:
    """The key goes to the terminal, its entry to standard output and so into a file."""
    from serve_app.api.keys import key_entry, new_key

    entry = key_entry(options.name, key := new_key())
    print(f"{options.name}'s key, shown this once: {key}", file=sys.stderr)
    print(entry, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
