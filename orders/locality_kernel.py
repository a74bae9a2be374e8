"""The search for locality-aware orders (method section 6), compiled: `orders.locality` calls it.

Each position has a key, a whole number, and the best position is the one with the largest: plain
loops over the whole grid, which compilers turn into instructions that compare several at once. A
key orders by what matters first in its high bits, breaks ties with random bits, and says in its low
bits whose it is; -1 marks a position that cannot be taken.

Importing this module loads numba and compiles, or reads what an earlier process compiled from
`__pycache__` (or `~/.cache/numba`): leave it until it is needed.
"""

import logging
import math
import pickle
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numba import int32, int64, njit, uint64
from numba.core import event

from util import streams

logger = logging.getLogger(__name__)

# Proximity scores as whole numbers: edge neighbours count 10 and corner neighbours 7, which puts
# the 25 possible neighbourhoods in the same order as 1 and 1 / sqrt(2) do.
EDGE, CORNER = 10, 7
_ABOVE_ALL = 100
# Stays negative whatever its neighbours add.
_DECODED = -1000
# Scores differ by 0.1 or more; this only absorbs the rounding of thresholds such as sqrt(2).
_TOLERANCE = 1e-9

# Bits of a key, from the lowest: position, counted from the end so that the first of equals wins,
# with room for `MAX_GRID_SIZE` squared; random number; score; whether the score is low.
_POSITION_BITS = 22
_RANDOM_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_WITHOUT_SCORE = (1 << _RANDOM_BITS + _POSITION_BITS) - 1
_LOW_SCORE = 1 << 7

_FAR = np.iinfo(np.int32).max
# Of `_search`: orders, states, group_sizes, num_known, side, reach, near.
_SIGNATURE = "void(int64[:, ::1], uint64[:, ::1], int64[::1], int64, int64, int64, int64)"

# The cache of compiled code does not notice changes of `util.streams`, which would change every
# random number of this project and so are none to expect.
_mix = njit(streams.mix)
_GOLDEN = streams.GOLDEN


def make_orders(
    ids: np.ndarray,
    known: np.ndarray,
    group_sizes: Sequence[int],
    side: int,
    proximity: float,
    repulsion: float,
    seed: int,
) -> np.ndarray:
    """Make orders (B, N) int64 of images `ids` (B,), which begin with `known` positions (B, M)."""
    sizes = np.array(group_sizes, dtype=np.int64)
    states = streams.starting_states("order", seed, ids[:, None], np.arange(len(sizes)))
    orders = np.empty((len(ids), side * side), dtype=np.int64)
    orders[:, : known.shape[1]] = known
    reach = min(math.floor(repulsion), side - 1)
    _search(orders, states, sizes, known.shape[1], side, reach, lowest_near_score(proximity))
    return orders


def lowest_near_score(proximity_threshold: float) -> int:
    """Find the lowest whole-number score that reaches the threshold; one above all if none."""
    reaching = (
        EDGE * edges + CORNER * corners
        for edges, corners in product(range(5), repeat=2)
        if edges + corners / math.sqrt(2) >= proximity_threshold - _TOLERANCE
    )
    return min(reaching, default=_ABOVE_ALL)


def _compiled(function: Callable) -> Callable:
    """`function` compiled for `_SIGNATURE`, and kept on the disk where there is room."""
    with event.install_listener("numba:compile", _Announcement(function)):
        try:
            return njit(_SIGNATURE, nogil=True, cache=True)(function)
        # What numba raises if no folder can be written, the disk is full or a file is damaged.
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            logger.info("no compiled code on the disk (%s); set NUMBA_CACHE_DIR to keep it", error)
            return njit(_SIGNATURE, nogil=True)(function)


class _Announcement(event.Listener):
    """Say why nothing happens for some seconds."""

    def __init__(self, function: Callable) -> None:
        self._function = function

    def on_start(self, started: event.Event) -> None:
        # Not for the smaller functions compiled along with it.
        if started.data["dispatcher"].py_func is self._function:
            logger.info("compiling the search for generation orders (some seconds)")

    def on_end(self, ended: event.Event) -> None:
        pass


@njit
def _random_words(words, state):
    # As `streams.words` from one starting state.
    for i in range(len(words)):
        words[i] = _mix(state + uint64(i + 1) * _GOLDEN)


# The two passes use different halves of the random words: being skipped by the first must not say
# anything about the ties of the second.
@njit
def _proximity_pass(group, keys, scores, words, side, reach, near):
    """Take positions from the highest score down, none within reach of one taken: how many."""
    last = len(keys) - 1
    for i in range(len(keys)):
        key = scores[i] << _RANDOM_BITS | int64(words[i] >> uint64(_RANDOM_BITS))
        keys[i] = key << _POSITION_BITS | last - i if scores[i] >= near else -1
    for slot in range(len(group)):
        best = int64(-1)
        for i in range(len(keys)):
            best = max(best, keys[i])
        if best < 0:
            return slot
        position = last - (best & _POSITION_MASK)
        group[slot] = position
        y, x = position // side, position % side
        left, right = max(x - reach, 0), min(x + reach, side - 1)
        for row in range(max(y - reach, 0), min(y + reach, side - 1) + 1):
            for i in range(row * side + left, row * side + right + 1):
                keys[i] = -1
    return len(group)


@njit
def _fill(group, taken, keys, scores, words, distances, ys, xs, near):
    """Farthest-point sampling over all that is left, for the slots of the group from `taken` on."""
    last = len(keys) - 1
    for i in range(len(keys)):
        merit = scores[i] + (_LOW_SCORE if scores[i] < near else 0)
        key = merit << _RANDOM_BITS | int64(words[i] & uint64((1 << _RANDOM_BITS) - 1))
        keys[i] = key << _POSITION_BITS | last - i
    # Squared, to the nearest of the group; 0 also where decoded.
    for i in range(len(keys)):
        distances[i] = _FAR if scores[i] >= 0 else 0
    if taken == 0:
        # A group still empty starts with a random position, whatever its score.
        best = int64(-1)
        for i in range(len(keys)):
            if scores[i] >= 0:
                best = max(best, keys[i] & _WITHOUT_SCORE)
        group[0] = last - (best & _POSITION_MASK)
        taken = 1
    farthest = int32(0)
    for slot in range(taken):
        farthest = _come_closer(distances, ys, xs, group[slot])
    for slot in range(taken, len(group)):
        best = int64(-1)
        for i in range(len(keys)):
            if distances[i] == farthest:
                best = max(best, keys[i])
        group[slot] = last - (best & _POSITION_MASK)
        farthest = _come_closer(distances, ys, xs, group[slot])


@njit
def _come_closer(distances, ys, xs, position):
    """Put a position into the group: the largest of the distances that remain."""
    y, x = ys[position], xs[position]
    farthest = int32(0)
    for i in range(len(distances)):
        # Left to itself numba computes in 64 bits, half as many at once.
        dy, dx = int32(ys[i] - y), int32(xs[i] - x)
        distance = min(distances[i], int32(int32(dy * dy) + int32(dx * dx)))
        distances[i] = distance
        farthest = max(farthest, distance)
    return farthest


@njit
def _decode(group, scores, side):
    """Mark a finished group; its neighbours now score more."""
    for position in group:
        y, x = position // side, position % side
        for row in range(max(y - 1, 0), min(y + 1, side - 1) + 1):
            for column in range(max(x - 1, 0), min(x + 1, side - 1) + 1):
                scores[row * side + column] += EDGE if row == y or column == x else CORNER
        scores[position] = _DECODED


@_compiled
def _search(orders, states, group_sizes, num_known, side, reach, near):
    """Write an order into each row (B, N) of `orders`, behind the `num_known` positions.

    The random words of each row and step start at `states` (B, K); a taken position keeps others
    out up to the Chebyshev distance `reach`; `near` is the lowest score of the proximity pass.
    """
    num_tokens = side * side
    words = np.empty(num_tokens, dtype=np.uint64)
    keys = np.empty(num_tokens, dtype=np.int64)
    scores = np.empty(num_tokens, dtype=np.int64)
    distances = np.empty(num_tokens, dtype=np.int32)
    ys = np.empty(num_tokens, dtype=np.int32)
    xs = np.empty(num_tokens, dtype=np.int32)
    for i in range(num_tokens):
        ys[i], xs[i] = i // side, i % side
    for row in range(len(orders)):
        scores[:] = 0
        _decode(orders[row, :num_known], scores, side)
        start = num_known
        for step in range(len(group_sizes)):
            group = orders[row, start : start + group_sizes[step]]
            start += group_sizes[step]
            _random_words(words, states[row, step])
            taken = _proximity_pass(group, keys, scores, words, side, reach, near)
            if taken < len(group):
                _fill(group, taken, keys, scores, words, distances, ys, xs, near)
            _decode(group, scores, side)
