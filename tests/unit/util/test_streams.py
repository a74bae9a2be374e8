import numpy as np
import pytest

from util import streams


def test_a_row_depends_on_its_names_alone() -> None:
    ids = np.array([3, 99, 0, 60_000])
    together = streams.uniforms("test", 7, ids, count=50)
    for row, name in zip(together, ids, strict=True):
        assert np.array_equal(row, streams.uniforms("test", 7, int(name), count=50)[0])
    assert np.array_equal(together[:, :20], streams.uniforms("test", 7, ids, count=20))


def test_names_and_their_order_matter() -> None:
    rows = [
        streams.words("a", 1, 2, count=4),
        streams.words("a", 2, 1, count=4),
        streams.words("b", 1, 2, count=4),
        streams.words("a", 1, count=4),
        streams.words("a", 1, -2, count=4),
    ]
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_no_number_repeats_between_neighbouring_streams() -> None:
    words = streams.words("test", 0, np.arange(1000), count=256)
    assert len(np.unique(words)) == words.size


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    draws = streams.uniforms("test", 0, np.arange(2000), count=64)
    assert draws.dtype == np.float32
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    expected = draws.size / 50
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 49 + 4.5 * np.sqrt(2 * 49)
    for first, second in ((draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:])):
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(first.size)


def test_permutations_are_uniform() -> None:
    rows = streams.permutations("test", 0, np.arange(12_000), count=3)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(3), (12_000, 1)))
    counts = np.unique(rows @ np.array([9, 3, 1]), return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 2000).max() < 4.5 * np.sqrt(2000)


@pytest.mark.parametrize("names", [(0,), (1, 2), (2**62, -5)])
def test_torch_seed_range(names: tuple[int, ...]) -> None:
    seed = streams.torch_seed("test", *names)
    assert 0 <= seed < 2**63
    assert seed == streams.torch_seed("test", *names)
