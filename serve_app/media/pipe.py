"""Messages over a pipe between the upload decoder and its workers: a JSON header and raw buffers.

A message is ``u32`` length of the header, the header, then the buffers whose sizes the header lists
under ``sizes``. JSON and not pickle, since one end reads files from strangers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

MAX_HEADER_BYTES = 1 << 20


class BrokenPipe(Exception):
    """The other end is gone, or speaks something else."""


def write_message(pipe: IO[bytes], header: Mapping[str, Any], *buffers: bytes | np.ndarray) -> None:
    """Send one message.

    Raises:
        BrokenPipe: nobody reads any more.
    """
    views = [np.frombuffer(buffer, np.uint8).data for buffer in buffers]
    text = json.dumps({**header, "sizes": [len(view) for view in views]}).encode()
    try:
        pipe.write(struct.pack(">I", len(text)) + text)
        for view in views:
            pipe.write(view)
        pipe.flush()
    except (OSError, ValueError) as error:
        raise BrokenPipe(str(error)) from error


def read_message(pipe: IO[bytes], max_bytes: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Wait for one message: its header and its buffers, ``[n]`` uint8 each.

    Raises:
        BrokenPipe: the pipe ended, or a message would hold more than ``max_bytes``.
    """
    (length,) = struct.unpack(">I", _read(pipe, 4).tobytes())
    if length > MAX_HEADER_BYTES:
        raise BrokenPipe(f"a header of {length} bytes; at most {MAX_HEADER_BYTES}")
    header: dict[str, Any] = json.loads(_read(pipe, length).tobytes())
    sizes: list[int] = header["sizes"]
    if sum(sizes) > max_bytes:
        raise BrokenPipe(f"a message of {sum(sizes)} bytes; at most {max_bytes}")
    return header, [_read(pipe, size) for size in sizes]


def _read(pipe: IO[bytes], size: int) -> np.ndarray:
    buffer = np.empty(size, np.uint8)
    try:
        received = pipe.readinto(buffer.data) if size else 0  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        raise BrokenPipe(str(error)) from error
    if received != size:
        raise BrokenPipe(f"the pipe ended after {received} of {size} bytes")
    return buffer
