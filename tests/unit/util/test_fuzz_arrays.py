"""Array files: read as NumPy reads them, or refused in one line and with little memory."""

import io
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.fuzzing import HEADERS, claiming, damaged, npy, one_line, read_confined
from util.arrays import MAX_UNPACKED_BYTES, map_npy, read_npz

TYPES = st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes())
ARRAYS = hnp.arrays(TYPES, hnp.array_shapes(max_side=4))
KINDS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@settings(deadline=None)
@given(ARRAYS, st.booleans(), st.sampled_from([np.savez, np.savez_compressed]))
def test_good_files_are_read_as_numpy_does(array: np.ndarray, fortran: bool, save: object) -> None:
    array = np.asfortranarray(array) if fortran else array
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, array)
        mapped = map_npy(path)
        assert isinstance(mapped, np.memmap)
        save(path.with_suffix(".npz"), first=array, second=array.T)
        read = read_npz(path.with_suffix(".npz"), ["second", "first"])
        for got, expected in ((mapped, array), (read["first"], array), (read["second"], array.T)):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
            assert not got.flags.writeable


def zipped(member: bytes, kind: int = zipfile.ZIP_STORED, **claims: int) -> bytes:
    """An archive of one array, whose entry then claims something else."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("x.npy", member)
        for name, value in claims.items():
            setattr(archive.getinfo("x.npy"), name, value)
    return file.getvalue()


GOOD = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (9,), }", bytes(72))


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.binary(),
        damaged(zipped(GOOD)),
        st.builds(zipped, st.one_of(HEADERS, st.binary()), st.sampled_from(KINDS)),
        st.builds(zipped, HEADERS, st.sampled_from(KINDS)).flatmap(damaged),
    )
)
def test_any_archive(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(content)
        try:
            array = read_npz(path, ["x"])["x"]
        except (ValueError, KeyError, OSError) as error:
            assert one_line(error)
        else:
            assert array.nbytes <= 200
            assert not array.dtype.hasobject


def bomb(claimed: int) -> bytes:
    """An archive that unpacks to a thousand times its size, whatever size it claims to have."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packer.compress(claiming("|u1", "(900000000,)", b""))
    stream += packer.flush(zlib.Z_FULL_FLUSH)
    megabyte = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream += 900 * megabyte + packer.flush()
    return zipped(stream, compress_type=zipfile.ZIP_DEFLATED, file_size=claimed)


def test_small_archives_take_little_memory_and_time(tmp_path: Path) -> None:
    contents = {
        "honest": bomb(900_000_128),
        "modest": bomb(128),
        "bzip2": zipped(bytes(3 * MAX_UNPACKED_BYTES), zipfile.ZIP_BZIP2),
        "trillion": zipped(claiming("|u1", "(1000000000000,)"), zipfile.ZIP_DEFLATED),
        "brackets": zipped(npy("(" * 9000)),
        "cut": bomb(900_000_128)[:-30],
    }
    for name, content in contents.items():
        assert len(content) < 10**6
        (tmp_path / name).write_bytes(content)
    imports, paths = "from util.arrays import read_npz", sorted(tmp_path.iterdir())
    assert len(read_confined(imports, 'read_npz(path, ["x"])', *paths)) == len(contents)


def test_the_confined_process_notices(tmp_path: Path) -> None:
    for take, error in (("bytes(2 * 10**9)", "MemoryError"), ("0", "nothing")):
        with pytest.raises(AssertionError, match=error):
            read_confined("", take, tmp_path)
