import numpy as np

from util import streams


def test_a_row_depends_on_its_names_alone() -> None:
    ids = np.array([3, 99, 0, 60_000])
    together = streams.uniforms("test", 7, ids, count=50)
    for row, name in zip(together, ids, strict=True):
        assert np.array_equal(row, streams.uniforms("test", 7, int(name), count=50)[0])
    assert together.dtype == np.float32
    assert np.array_equal(together[:, :20], streams.uniforms("test", 7, ids, count=20))


def test_names_and_their_order_matter_and_no_number_repeats() -> None:
    names = [("a", 1, 2), ("a", 2, 1), ("b", 1, 2), ("a", 1), ("a", 1, -2)]
    assert len(np.unique([streams.words(*name, count=4) for name in names])) == 4 * len(names)
    words = streams.words("test", 0, np.arange(1000), count=256)
    assert len(np.unique(words)) == words.size


def test_the_bits_are_those_of_every_version() -> None:
    words = streams.words("test", 1, -2, count=2).tolist()
    assert words == [[12436928979993504301, 14752885480414658316]]
    drawn = streams.uniforms("test", 1, np.array([5, 6]), count=1).ravel().tolist()
    assert drawn == [0.3151278495788574, 0.43876683712005615]
    assert streams.permutations("test", 7, count=8).tolist() == [[4, 6, 3, 2, 7, 5, 1, 0]]
    assert streams.torch_seed("test", 3) == 5903022770657314627
