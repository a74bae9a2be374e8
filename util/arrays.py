"""Reading .npy and .npz files from elsewhere: no pickles, no more memory than they are worth."""

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

# What NumPy's header reader and Python's archive reader are seen to raise on damaged files.
_NO_HEADER = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, tokenize.TokenError)
_NO_HEADER += (RecursionError, MemoryError, OverflowError)
_NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, RuntimeError)


def map_npy(path: Path) -> np.ndarray:
    """Memory-map an .npy file, read-only; a `ValueError` without its name if it is damaged."""
    with open_file(path) as stream:
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
    """Read some arrays of an .npz archive, each of at most `max_bytes`.

    A `KeyError` is for an array that is not there, a `ValueError` for a damaged file or objects.
    """
    arrays = {}
    # No ExitStack: a published cache is read two small files an image.
    with _naming_damage(), open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        for name in names:
            with _open_array(archive, name) as packed:
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
    read: Callable[[int], np.ndarray]  # the next so many of the first axis, or all that are left


@contextmanager
def stream_npz(path: Path, name: str) -> Iterator[ArrayStream]:
    """Open one array of an .npz archive, of any size; errors are those of `read_npz`.

    The archive's checksum is compared once the last entry is read.
    """
    with ExitStack() as files:
        with _naming_damage():
            stream = files.enter_context(open_file(path))
            packed = _open_array(files.enter_context(zipfile.ZipFile(stream)), name)
            files.enter_context(packed)
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
    """List the arrays of an .npz archive; a `ValueError` if it is damaged."""
    with _naming_damage(), open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except _NO_ARCHIVE as error:
        raise ValueError("damaged, or no .npz archive") from error


def _open_array(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """Open the file of an array, if it is packed so that it can be read piece by piece."""
    if f"{name}.npy" not in archive.namelist():
        raise KeyError(name)
    info = archive.getinfo(f"{name}.npy")
    # Others unpack whole blocks at once, however little of them is asked for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name}.npy is not packed the way NumPy does it")
    return archive.open(info)


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, whether it is in Fortran's order, and type; the data follow in the stream."""
    try:
        major, minor = np.lib.format.read_magic(stream)
        read = getattr(np.lib.format, f"read_array_header_{major}_{minor}")
        shape, fortran_order, dtype = read(stream)
    except _NO_HEADER as error:
        raise ValueError("has no readable .npy header, expected one as NumPy writes it") from error
    if dtype.hasobject:
        raise ValueError("Object arrays are not read, expected plain numbers")
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise ValueError("has no usable shape in its .npy header, expected lengths")
    return shape, fortran_order, dtype
