"""Reading .npy and .npz files from elsewhere: no pickles, no more memory than they are worth."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from util.files import open_file

# The largest array taken out of an archive: a small file can claim to unpack to anything.
MAX_UNPACKED_BYTES = 2**27

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What NumPy's header reader and Python's archive reader are seen to raise on damaged files.
_NO_HEADER = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, tokenize.TokenError)
_NO_HEADER += (RecursionError, MemoryError, OverflowError)
_NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, RuntimeError)


def map_npy(path: Path) -> np.ndarray:
    """Memory-map the array of an .npy file, read-only.

    Raises:
        ValueError: not such a file, or of another size than its header says; without its name.
    """
    with open_file(path) as stream:
        if stream.read(4) == b"PK\x03\x04":
            raise ValueError("is an .npz archive, expected an .npy file")
        stream.seek(0)
        shape, _, dtype = _read_header(stream)
        length = math.prod(shape) * dtype.itemsize
        expected = stream.tell() + length
        size = stream.seek(0, io.SEEK_END)
    if size != expected:
        raise ValueError(f"is damaged: {size} bytes, expected {expected}")
    if length == 0:
        raise ValueError("holds an empty array, expected at least one entry")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def read_npz(
    path: Path, names: Sequence[str], max_bytes: int = MAX_UNPACKED_BYTES
) -> dict[str, np.ndarray]:
    """Read some arrays of an .npz archive.

    Raises:
        KeyError: there is no array of that name.
        ValueError: damaged, an array of Python objects or one above `max_bytes`.
    """
    arrays = {}
    with _naming_damage(), open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        for name in names:
            with archive.open(_member(archive, name)) as packed:
                content = packed.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise ValueError(f"{name}.npy unpacks to more than {max_bytes} bytes")
            body = io.BytesIO(content)
            shape, fortran_order, dtype = _read_header(body)
            # numpy.load would allocate what the header claims before it looks for it.
            array = np.frombuffer(content, dtype, offset=body.tell())
            arrays[name] = array.reshape(shape, order="F" if fortran_order else "C")
    return arrays


class ArrayStream(NamedTuple):
    """An array that is read piece by piece."""

    shape: tuple[int, ...]
    dtype: np.dtype
    # A number -> the next so many entries of the first axis, or all that are left.
    read: Callable[[int], np.ndarray]


@contextmanager
def stream_npz(path: Path, name: str) -> Iterator[ArrayStream]:
    """Open one array of an .npz archive, of any size, without having all of it in memory.

    The archive's checksum is compared once the last entry is read.

    Raises:
        KeyError: there is no array of that name.
        ValueError: damaged, cut short, an array of Python objects or one in Fortran's order.
    """
    with ExitStack() as files:
        with _naming_damage():
            stream = files.enter_context(open_file(path))
            archive = files.enter_context(zipfile.ZipFile(stream))
            packed = files.enter_context(archive.open(_member(archive, name)))
            shape, fortran_order, dtype = _read_header(packed)
        if fortran_order:
            raise ValueError(f"{name}.npy is in Fortran's order, expected C's")
        entry = math.prod(shape[1:]) * dtype.itemsize
        left = math.prod(shape[:1])

        def read(count: int) -> np.ndarray:
            nonlocal left
            count = min(count, left)
            with _naming_damage():
                content = packed.read(count * entry)
                left -= count
                ends = left > 0 or not packed.read(1)  # the end is where checksums are compared
            if len(content) != count * entry or not ends:
                raise ValueError(f"{name}.npy is damaged: another size than its header says")
            return np.frombuffer(content, dtype).reshape(count, *shape[1:])

        yield ArrayStream(shape, dtype, read)


def names_in_npz(path: Path) -> set[str]:
    """List the arrays of an .npz archive; raises as `read_npz`."""
    with _naming_damage(), open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except _NO_ARCHIVE as error:
        raise ValueError("damaged, or no .npz archive") from error


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Find the file of an array in an archive, packed so that it can be read piece by piece."""
    member = f"{name}.npy"
    if member not in archive.namelist():
        raise KeyError(name)
    info = archive.getinfo(member)
    # Others unpack whole blocks at once, however little of them is asked for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member} is not packed the way NumPy does it")
    return info


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, whether it is in Fortran's order, and type; the data follow in the stream."""
    try:
        read = _HEADER_READERS[np.lib.format.read_magic(stream)]
        shape, fortran_order, dtype = read(stream)
    except _NO_HEADER as error:
        raise ValueError("has no readable .npy header, expected one as NumPy writes it") from error
    if dtype.hasobject:
        raise ValueError("Object arrays are not read, expected plain numbers")
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise ValueError("has no usable shape in its .npy header, expected lengths")
    return shape, fortran_order, dtype
