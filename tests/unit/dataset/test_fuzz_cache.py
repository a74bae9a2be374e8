"""Whatever lies in a cache folder, only tokens of its vocabulary come out, or one line."""

import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset.token_cache import check_cache, open_cache
from dataset.write_cache import INDEX_FILE, LABELS_FILE, TOKENS_FILE, write_index, write_shard
from tests.fuzzing import HEADERS, JSON, claiming, damaged, npy, one_line, read_confined
from util.errors import UserError
from util.geometry import TokenGrid

GRID = TokenGrid(image_size=8, stride=4, vocab_size=50)


def write_ours(folder: Path) -> None:
    tokens = np.random.default_rng(0).integers(50, size=(6, 2, GRID.num_tokens))
    count = write_shard(folder, 0, tokens, np.arange(6) % 2, GRID.vocab_size)
    write_index(folder, GRID, "f" * 64, ("ant", "bee"), [count])


def write_published(folder: Path) -> None:
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        np.savez(folder / name / "1.npz", indices=np.arange(4), indices_flip=np.arange(4))


def written(write: object) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


CACHE, PUBLISHED = written(write_ours), written(write_published)
INDEX = json.loads(CACHE[INDEX_FILE])


def check(files: dict[str, bytes]) -> None:
    """Open and read a cache of these files."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).parent.mkdir(exist_ok=True)
            Path(folder, name).write_bytes(content)
        try:
            cache = open_cache(folder)
            check_cache(cache, cache.grid or GRID, None, 1000)
            assert (cache.labels >= 0).all() and (cache.labels < len(cache.classes)).all()
            both = np.arange(cache.num_images).repeat(2)
            tokens = cache.read(both, np.arange(len(both)) % 2 == 1)
            assert tokens.shape == (len(both), cache.num_tokens)
            assert (tokens >= 0).all() and (tokens < cache.grid.vocab_size).all()
        except UserError as error:
            assert one_line(error)
            assert str(error).startswith(f"--cached_path: {folder}")


@settings(deadline=None)
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    files = data.draw(st.sampled_from([CACHE, CACHE, PUBLISHED]))
    name = data.draw(st.sampled_from(sorted(files)))
    any_array = [HEADERS] if name in (TOKENS_FILE, LABELS_FILE) else []
    check({**files, name: data.draw(st.one_of(damaged(files[name]), *any_array))})


INTEGERS = st.one_of(st.integers(-2, 60), st.sampled_from([2**31, 2**63, 10**4000]))
ENTRIES = st.dictionaries(st.sampled_from(sorted(INDEX)), st.one_of(JSON, INTEGERS), min_size=1)


@settings(deadline=None, max_examples=200)
@given(st.one_of(ENTRIES, JSON))
@example({"image_size": 10**4000, "stride": 1})
@example({"version": "1" * 10**6})
@example({"crc32": {TOKENS_FILE: "1" * 10**6}})
def test_any_index(entries: object) -> None:
    index = {**INDEX, **entries} if isinstance(entries, dict) else entries
    check({**CACHE, INDEX_FILE: json.dumps(index).encode()})


def test_small_files_take_little_memory_and_time(tmp_path: Path) -> None:
    hostile = {
        "brackets": (INDEX_FILE, b"[" * 10**6),
        "number": (INDEX_FILE, b'{"format": ' + b"9" * 10**6 + b"}"),
        "huge": (INDEX_FILE, json.dumps({**INDEX, "num_images": 10**12}).encode()),
        "trillion": (TOKENS_FILE, claiming("<u2", "(1000000000000, 2, 4)")),
        "labels": (LABELS_FILE, claiming("<i4", "(1000000000000,)")),
        "header": (TOKENS_FILE, npy("(" * 9000)),
    }
    for case, (name, content) in hostile.items():
        (tmp_path / case).mkdir()
        for file, good in {**CACHE, name: content}.items():
            (tmp_path / case / file).write_bytes(good)
    imports = "from dataset.token_cache import open_cache"
    result = read_confined(imports, "open_cache(path)", *sorted(tmp_path.iterdir()))
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(hostile)
