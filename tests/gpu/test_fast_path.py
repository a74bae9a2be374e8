"""The captured sampler on a GPU: the plain one's tokens, never those of older weights."""

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.decoding import generate, generate_steps
from models.fast import MAX_GRAPHS, FastPath
from models.lpd import LPD
from orders.group_sizes import group_sizes
from orders.locality import random_orders
from tests.forced import forced_logits
from tests.golden.test_lpd import TINY, check_fast_logits, check_greedy, greedy_cases, read, tiny
from tests.unit.models.small import NUM_TOKENS, random_batch, small_lpd
from tests.unit.models.test_fast_path import CHANGES, FILTERS, GUIDANCE, LABELS, SIZES, TABLES

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tokens_of(
    model: LPD, sizes: list[int] = SIZES, batch_size: int = 2, seed: int = 0, **options: object
) -> torch.Tensor:
    orders = random_orders(batch_size, sum(sizes), seed=seed)
    return generate(model, LABELS[:batch_size], orders, sizes, seed=seed, **options)


def check_equal(model: LPD, sizes: list[int], batch_size: int, **options: object) -> None:
    for seed in range(3):  # the second and third are replays
        fast = tokens_of(model, sizes, batch_size, seed, **options)
        plain = tokens_of(model, sizes, batch_size, seed, sampler="plain", **options)
        assert torch.equal(fast, plain)
    assert len(FastPath.of(model).graphs) == 1


@pytest.mark.parametrize(("num_tokens", "steps"), TABLES)
def test_equals_plain_for_every_published_table(num_tokens: int, steps: int) -> None:
    model = small_lpd(img_size=int(num_tokens**0.5) * 4).to("cuda")
    check_equal(model, group_sizes(num_tokens, steps), 3, cfg=3.0)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(("guidance", "filters"), list(itertools.product(GUIDANCE, FILTERS)))
def test_equals_plain_for_every_setting(guidance: dict, filters: dict, batch_size: int) -> None:
    model = small_lpd(img_size=64).to("cuda")
    check_equal(model, group_sizes(256, 20), batch_size, **guidance, **filters)


@pytest.mark.parametrize("options", [{}, {"cfg": 3.0}])
def test_known_tokens_have_graphs_of_their_own_and_steps_need_none(options: dict) -> None:
    model, graphs = small_lpd().to("cuda"), set()
    tokens, labels, orders = random_batch(torch.Generator().manual_seed(0), batch_size=4)
    for num_known, sizes in ((0, [16]), (1, [15]), (6, [4, 6]), (6, [10])):
        known = tokens.gather(1, orders[:, :num_known])
        for seed in range(2):  # the second is a replay
            given = {"known": known, "seed": seed, **options}
            fast, plain = (
                generate(model, labels, orders, sizes, sampler=sampler, **given)
                for sampler in ("fast", "plain")
            )
            assert torch.equal(fast, plain)
            *_, last = generate_steps(model, labels, orders, sizes, **given)
            assert torch.equal(last, fast)
        graphs.add(len(FastPath.of(model).graphs))
    assert graphs == {1, 2, 3, 4}


@pytest.mark.parametrize(("name", "key"), greedy_cases(TINY))
def test_golden_tokens(tiny: LPD, name: str, key: str) -> None:
    check_greedy(tiny.to("cuda"), read(name), key, "fast")


@pytest.mark.parametrize("name", TINY)
def test_golden_logits(tiny: LPD, name: str) -> None:
    check_fast_logits(tiny.to("cuda"), read(name))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_weight_is_seen(change: Callable[[LPD], None], bf16: bool) -> None:
    model = small_lpd().to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        before = tokens_of(model, batch_size=8)
    change(model)
    model.to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        after = tokens_of(model, batch_size=8)
        anew = tokens_of(copy.deepcopy(model), batch_size=8)
    assert torch.equal(after, anew)
    assert not torch.equal(after, before)


def test_one_graph_serves_all_orders_and_few_are_kept() -> None:
    model = small_lpd().to("cuda")
    graphs = FastPath.of(model).graphs
    for seed in range(4):
        tokens_of(model, seed=seed, cfg=2.0)
    assert len(graphs) == 1
    for batch_size in range(1, MAX_GRAPHS + 3):
        tokens_of(model, batch_size=batch_size)
    assert len(graphs) == MAX_GRAPHS
    model.to("cpu")
    tokens_of(model)
    assert len(graphs) == 0


@torch.no_grad()
def test_bfloat16_logits_are_within_its_rounding() -> None:
    """As in the tests of the CPU: the compiled form rounds no more than autocast does."""
    model = small_lpd(decoder_embed_dim=128, decoder_depth=6).to("cuda")
    for parameter in model.parameters():
        parameter.mul_(0.3)
    tokens, labels, orders = random_batch(torch.Generator().manual_seed(0), batch_size=8)
    batch = [x.to("cuda") for x in (tokens, labels, orders)]
    exact = model.forward_logits(batch[0], batch[1], SIZES, batch[2])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        network = FastPath.of(model).network(model)
    fast = forced_logits(network, batch[0], batch[1], SIZES, batch[2])
    error = (fast.float() - exact).square().mean().sqrt() / exact.std()
    assert 1e-4 < error < 6 * 2**-8


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = small_lpd().to("cuda")
    orders = random_orders(8, NUM_TOKENS)
    ids = np.arange(8)
    together = generate(model, LABELS, orders, SIZES, cfg=2.0, image_ids=ids)
    for batch in ([0], [1, 2], [5, 3, 4]):
        alone = generate(model, LABELS[batch], orders[batch], SIZES, cfg=2.0, image_ids=ids[batch])
        assert torch.equal(alone, together[batch])
