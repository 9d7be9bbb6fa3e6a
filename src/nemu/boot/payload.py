"""Unpacks the payload of a bzImage as a stream, so that the kernel is never held whole.

What is unpacked goes from small buffers straight into guest RAM.  The formats are those of
Linux's ``lib/decompress_*.c`` but LZO, which has no fast decoder here: such a kernel
unpacks itself (64-bit boot protocol), as does one whose library is not installed.

The payload is an enemy's as well: buffers do not grow with what it claims, and its output
ends at the size that the image declares, so that a decompression bomb is cut off.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from threading import Thread
from typing import IO, Protocol, cast

from nemu.boot.image import PEEK_SIZE, ImageFile
from nemu.errors import ConfigError

MAX_UNPACKED = 1 << 30  # KERNEL_IMAGE_SIZE: no x86-64 kernel is larger
_INPUT = 64 << 10
_OUTPUT = 256 << 10
_SIZE_FIELD = 4  # the unpacked size, behind the compressed data (in gzip's case as its own ISIZE)

# Dictionaries: Linux packs with at most 128 MiB (XZ and ZSTD_WINDOWSIZE_MAX in lib/decompress_unzstd.c).
_DICTIONARY_MAX = 128 << 20
_LZMA_MEMORY_MAX = _DICTIONARY_MAX + (8 << 20)

_LZ4_MAGIC = 0x184C2102
_LZ4_BLOCK = 8 << 20  # legacy frames hold blocks of this size, the last one less
_AHEAD_MAX = 3  # blocks in memory besides the one that is written
_LZ4_BLOCK_PACKED_MAX = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16  # LZ4_COMPRESSBOUND


class CorruptError(ValueError):
    """The compressed data breaks the rules of its format."""


class Packed:
    """The compressed bytes, as a file object that the decoders read from."""

    def __init__(self, file: ImageFile, offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._left = length

    def read(self, size: int) -> bytes:
        data = self._file.read(self._offset, min(size, self._left))
        self._offset += len(data)
        self._left -= len(data)
        return data


Decoder = Callable[[Packed], Iterator[bytes]]


class PayloadStream:
    """The unpacked payload as an image.Source.  Every corruption ends in ConfigError."""

    def __init__(self, file: ImageFile, chunks: Iterator[bytes], size: int) -> None:
        self._file = file
        self._chunks = chunks
        self._size = size
        self._unpacked = 0
        self._chunk = memoryview(b"")
        self._position = 0  # of the chunk's first byte in the unpacked payload

    def error(self, problem: str) -> ConfigError:
        return self._file.error(problem)

    def peek(self) -> bytes:
        while len(self._chunk) < PEEK_SIZE and (more := self._next()):
            self._chunk = memoryview(bytes(self._chunk) + more)
        return bytes(self._chunk[:PEEK_SIZE])

    def read_at(self, offset: int, view: memoryview) -> None:
        if offset < self._position:
            raise self.error("is corrupt: its segments overlap in the file")
        self._skip(offset - self._position)
        done = 0
        while done < len(view):
            self._fill()
            count = min(len(self._chunk), len(view) - done)
            view[done : done + count] = self._chunk[:count]
            self._skip(count)
            done += count

    def finish(self) -> None:
        """Unpack what is left, for its checksum and its size to be seen."""
        while self._next():
            pass
        if self._unpacked != self._size:
            raise self.error(f"is corrupt: it unpacks to {self._unpacked} bytes, not to {self._size}")

    def _skip(self, count: int) -> None:
        while count:
            self._fill()
            step = min(count, len(self._chunk))
            self._chunk = self._chunk[step:]
            self._position += step
            count -= step

    def _fill(self) -> None:
        if not self._chunk:
            chunk = self._next()
            if not chunk:
                raise self.error("is corrupt: its payload ends too early")
            self._chunk = memoryview(chunk)

    def _next(self) -> bytes:
        try:
            chunk = next(filter(None, self._chunks), b"")
        except CorruptError as error:
            raise self.error(f"is corrupt: its payload cannot be unpacked ({error})") from error
        self._unpacked += len(chunk)
        if self._unpacked > self._size:
            raise self.error(f"is corrupt: it unpacks to more than the {self._size} bytes that it declares")
        return chunk


def unpack(file: ImageFile, offset: int, length: int) -> PayloadStream | None:
    """A stream of the payload at ``offset``; None when only the kernel itself can unpack it."""
    magic = file.read(offset, min(length, 16))
    decoder = _decoder(magic)
    if decoder is None or length <= _SIZE_FIELD:
        return None
    field = file.read(offset + length - _SIZE_FIELD, _SIZE_FIELD)
    if len(field) < _SIZE_FIELD:
        raise file.error("is truncated")
    (size,) = struct.unpack("<I", field)
    if size > MAX_UNPACKED:
        raise file.error(f"is corrupt: it declares an unpacked size of {size} bytes")
    packed = length if decoder is _gzip else length - _SIZE_FIELD
    return PayloadStream(file, decoder(Packed(file, offset, packed)), size)


def _decoder(magic: bytes) -> Decoder | None:
    """The decoder for data that starts with ``magic``, if the module that it needs is there."""
    import importlib

    for start, decoder, module in _DECODERS:
        if magic.startswith(start):
            try:
                importlib.import_module(module)
            except ImportError:
                return None
            return decoder
    return None


def _gzip(packed: Packed) -> Iterator[bytes]:
    import zlib

    decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    while not decoder.eof:
        data = decoder.unconsumed_tail or packed.read(_INPUT)
        if not data:
            raise CorruptError("its data ends too early")
        try:
            yield decoder.decompress(data, _OUTPUT)
        except zlib.error as error:
            raise CorruptError(error) from error


class _StandardDecoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _bzip2(packed: Packed) -> Iterator[bytes]:
    import bz2

    return _standard(bz2.BZ2Decompressor(), packed, OSError)


def _xz(packed: Packed) -> Iterator[bytes]:
    import lzma

    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_MAX)
    return _standard(decoder, packed, lzma.LZMAError)


def _lzma(packed: Packed) -> Iterator[bytes]:
    import lzma

    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY_MAX)
    return _standard(decoder, packed, lzma.LZMAError)


def _standard(decoder: _StandardDecoder, packed: Packed, failure: type[Exception]) -> Iterator[bytes]:
    while not decoder.eof:
        data = packed.read(_INPUT) if decoder.needs_input else b""
        if decoder.needs_input and not data:
            raise CorruptError("its data ends too early")
        try:
            yield decoder.decompress(data, _OUTPUT)
        except (failure, ValueError, MemoryError) as error:
            raise CorruptError(error) from error


def _zstd(packed: Packed) -> Iterator[bytes]:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY_MAX)
    stream = decoder.stream_reader(cast("IO[bytes]", packed), read_size=_INPUT)
    try:
        while chunk := stream.read(_OUTPUT):
            yield chunk
    except (zstandard.ZstdError, MemoryError) as error:
        raise CorruptError(error) from error


def _lz4(packed: Packed) -> Iterator[bytes]:
    """Blocks stand alone, so the next ones are unpacked on other CPUs while one is written to guest RAM."""
    ahead = min(len(os.sched_getaffinity(0)) - 1, _AHEAD_MAX)
    jobs: deque[_Lz4Job] = deque()
    for block in _lz4_blocks(packed):
        jobs.append(_Lz4Job(block, in_thread=ahead > 0))
        if len(jobs) > ahead:
            yield jobs.popleft().take()
    while jobs:
        yield jobs.popleft().take()


def _lz4_blocks(packed: Packed) -> Iterator[bytes]:
    while len(word := packed.read(4)) == 4:
        (size,) = struct.unpack("<I", word)
        if size == _LZ4_MAGIC:  # frames may follow one another
            continue
        if size > _LZ4_BLOCK_PACKED_MAX:
            raise CorruptError(f"a block of {size} bytes")
        block = packed.read(size)
        if len(block) < size:
            raise CorruptError("its data ends too early")
        yield block


class _Lz4Job:
    """One block, unpacked in a thread of its own or when it is taken."""

    def __init__(self, block: bytes, *, in_thread: bool) -> None:
        self._block = block
        self._unpacked: bytes | Exception | None = None
        self._thread = Thread(target=self._run) if in_thread else None
        if self._thread is not None:
            self._thread.start()

    def take(self) -> bytes:
        if self._thread is not None:
            self._thread.join()
        else:
            self._run()
        if isinstance(self._unpacked, bytes):
            return self._unpacked
        raise CorruptError(self._unpacked) from self._unpacked

    def _run(self) -> None:
        import lz4.block

        try:
            self._unpacked = lz4.block.decompress(self._block, uncompressed_size=_LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
            self._unpacked = error


# Magic numbers as in lib/decompress.c of Linux.
_DECODERS: tuple[tuple[bytes, Decoder, str], ...] = (
    (b"\x1f\x8b", _gzip, "zlib"),
    (b"BZh", _bzip2, "bz2"),
    (b"\x5d\x00\x00", _lzma, "lzma"),
    (b"\xfd7zXZ\x00", _xz, "lzma"),
    (struct.pack("<I", _LZ4_MAGIC), _lz4, "lz4.block"),
    (b"\x28\xb5\x2f\xfd", _zstd, "zstandard"),
)
