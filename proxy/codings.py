"""Content codings (RFC 9110 8.4.1) undone in small steps, so that no body unfolds into more than is looked at."""

import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

STEP = 16 * 1024  # bytes that are decoded at once
MOST_STEPS = 256  # for one piece: 4 MB, about 15 ms
MOST_CODED = 48 * 1024  # bytes that wait for the end of the body, where they have to


class Decoder(Protocol):
    """Undoes a coding. Raises whatever its library raises, and `ValueError` for what unfolds too far."""

    @property
    def whole(self) -> bool:
        """Whether the coded bytes have come to the end that they name themselves."""

    def decode(self, piece: bytes) -> Iterator[bytes]:
        """Take the next coded bytes; give what can be told of the body by now."""

    def end(self) -> Iterator[bytes]:
        """Give the rest: no more bytes will come."""


class Inflater:
    """Undoes gzip and deflate as the bytes come. zlib holds about 40 KB for as long as this lives."""

    def __init__(self) -> None:
        self._stream: Any = None  # zlib does not name the type

    @property
    def whole(self) -> bool:
        return self._stream is not None and self._stream.eof

    def decode(self, piece: bytes) -> Iterator[bytes]:
        if self._stream is None and piece:
            self._stream = zlib.decompressobj(_window_bits(piece[0]))
        for _ in range(MOST_STEPS):
            if not piece:
                return
            yield self._stream.decompress(piece, STEP)
            if self._stream.unused_data:
                raise ValueError("something follows the end of the coded bytes")
            piece = self._stream.unconsumed_tail
        if piece:
            raise ValueError("it unfolds too far")

    def end(self) -> Iterator[bytes]:
        if self._stream is not None:
            yield self._stream.flush()  # what repetitions of up to 258 bytes it still had to write out, and no more


class Unpacker:
    """Undoes brotli and zstd at the end, if the coded bytes are not too many to be kept until then.

    The windows of these codings take megabytes, which is too much to hold for as long as a stream lasts.
    """

    def __init__(self, decompress: Callable[[bytes], bytes], finished: Callable[[], bool]) -> None:
        self._decompress = decompress
        self._finished = finished
        self._coded = bytearray()

    @property
    def whole(self) -> bool:
        return self._finished()

    def decode(self, piece: bytes) -> Iterator[bytes]:
        if len(self._coded) + len(piece) > MOST_CODED:
            raise ValueError("too many coded bytes")
        self._coded += piece
        yield from ()

    def end(self) -> Iterator[bytes]:
        part = self._decompress(bytes(self._coded))
        for _ in range(MOST_STEPS):
            yield part
            if not part or self._finished():
                return
            part = self._decompress(b"")
        raise ValueError("it unfolds too far")


def is_identity(coding: bytes) -> bool:
    """Tell whether a coding is none: `identity` should not stand there (RFC 9110 8.4), but some send it."""
    return coding.strip().lower() in (b"", b"identity")


def decoder(coding: bytes) -> Decoder | None:
    """Return what undoes a coding; None for one that nothing here undoes."""
    coding = coding.strip().lower()
    if coding in (b"gzip", b"x-gzip", b"deflate"):
        return Inflater()
    if coding == b"br" and (brotli := library("brotli")):
        return _brotli(brotli)
    if coding == b"zstd" and (zstd := library("compression.zstd", "backports.zstd")):
        return _zstd(zstd)
    return None


@cache  # a failing import costs the same each time
def library(*names: str) -> ModuleType | None:
    """Return the first of these modules that is installed: none is asked for, each is welcome."""
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _window_bits(first: int) -> int:
    # RFC 9110 8.4.1.2: some send deflate without zlib's format around it. In that format the low half of the first byte
    # is 8, in gzip's it is 15; a bare block begins with neither, as its padding is zero and 3 is no type of block.
    return zlib.MAX_WBITS | 32 if first & 15 in (8, 15) else -zlib.MAX_WBITS


def _brotli(brotli: Any) -> Unpacker:
    stream = brotli.Decompressor()
    return Unpacker(partial(stream.process, output_buffer_limit=STEP), stream.is_finished)  # a limit since brotli 1.2


def _zstd(zstd: Any) -> Unpacker:
    window = {zstd.DecompressionParameter.window_log_max: 23}  # RFC 9659: 8 MB is the most for HTTP
    stream = zstd.ZstdDecompressor(options=window)
    return Unpacker(partial(stream.decompress, max_length=STEP), lambda: stream.eof and not stream.unused_data)
