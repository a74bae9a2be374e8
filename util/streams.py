"""Random numbers that depend on names (seed, epoch, image id ...), not on who draws them.

So no result depends on the batch size, on the number of processes or on what was drawn before, and
a resumed run needs no saved random state. The generator is SplitMix64 (Steele, Lea and Flood,
OOPSLA 2014), started at a hash of the names: whole numbers, or arrays that broadcast to (B,).
"""

import zlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """Mix uint64 elementwise: word j = 1, 2 ... of a stream from s is mix(s + j * GOLDEN)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def starting_states(purpose: str, *names: int | np.ndarray) -> np.ndarray:
    """Hash names, which may broadcast to any shape here, to the starts of streams, uint64."""
    state = np.atleast_1d(mix(np.array([zlib.crc32(purpose.encode())], dtype=np.uint64)))
    for name in names:
        value = np.atleast_1d(np.asarray(name, dtype=np.int64)).view(np.uint64)
        state = mix((state ^ mix(value + GOLDEN)) + GOLDEN)
    return state


def words(purpose: str, *names: int | np.ndarray, count: int) -> np.ndarray:
    """Draw 64-bit words, (B, count) uint64; streams of different purposes are independent."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return mix(starting_states(purpose, *names)[:, None] + steps)


def uniforms(purpose: str, *names: int | np.ndarray, count: int) -> np.ndarray:
    """Draw uniform numbers in [0, 1), (B, count) float32, multiples of 2**-24 and so exact."""
    top = words(purpose, *names, count=count) >> np.uint64(40)
    return (top.astype(np.float64) * 2.0**-24).astype(np.float32)


def permutations(purpose: str, *names: int | np.ndarray, count: int) -> np.ndarray:
    """Draw permutations of range(count), (B, count) int64."""
    return np.argsort(words(purpose, *names, count=count), axis=1, kind="stable")


def torch_seed(purpose: str, *names: int) -> int:
    """Make a seed for `torch.manual_seed`, in [0, 2**63)."""
    return int(words(purpose, *names, count=1)[0, 0] >> np.uint64(1))
