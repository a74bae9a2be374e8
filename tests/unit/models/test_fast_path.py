"""The fast sampler: the plain one's tokens, from today's weights, on a GPU as one graph."""

import copy
import itertools
import logging
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.decoding import SAMPLERS, generate, generate_steps
from models.fast import MAX_GRAPHS, FastNetwork, FastPath, NetworkWeights, Rows
from models.lpd import LPD
from orders.group_sizes import training_group_sizes
from orders.locality import random_orders
from tests.forced import assert_same_but_for_ties, forced_logits
from tests.unit.models.small import NUM_TOKENS, Counter, random_batch, small_lpd

LABELS = torch.tensor([0, 3, 1, 4, 2, 2, 0, 1])
SIZES = [1, 3, 5, 7]


def tokens_of(model: LPD, batch_size: int = 2, **options: object) -> torch.Tensor:
    orders = random_orders(batch_size, NUM_TOKENS)
    return generate(model, LABELS[:batch_size], orders, SIZES, **options)


def check_equal(model, labels, orders, sizes, seed, known=None, **options) -> torch.Tensor:
    given = {"seed": seed, "known": known, **options}
    fast, plain = (generate(model, labels, orders, sizes, sampler=x, **given) for x in SAMPLERS)
    assert_same_but_for_ties(fast, plain, model, labels, orders, sizes, seed, **options)
    return fast


FILTERS = [{}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}]
GUIDANCE = [{}, {"cfg": 3.0}, {"cfg": 3.0, "cfg_schedule": "constant"}]
SETTINGS = [{**guidance, **filters} for guidance, filters in itertools.product(GUIDANCE, FILTERS)]
TABLES = [sizes for num_tokens in (256, 1024) for sizes in training_group_sizes(num_tokens)]
# Every table, and about twice every setting.
CASES = list(zip(TABLES, itertools.cycle(SETTINGS), itertools.cycle([1, 3, 8, 2, 5])))


@pytest.mark.parametrize(("sizes", "options", "batch_size"), CASES)
def test_equals_plain(sizes: list[int], options: dict, batch_size: int, device: str) -> None:
    model = small_lpd(img_size=int(sum(sizes) ** 0.5) * 4).to(device)
    for seed in range(3 if device == "cuda" else 1):  # later ones replay a graph
        orders = random_orders(batch_size, sum(sizes), seed=seed)
        tokens = check_equal(model, LABELS[:batch_size], orders, sizes, seed, **options)
    assert len(FastPath.of(model).graphs) == (device == "cuda")
    assert len(tokens.unique()) > (4 if {"top_k", "top_p"} & options.keys() else 10)


@pytest.mark.parametrize(("labelled", "options"), [(True, {}), (True, {"cfg": 3.0}), (False, {})])
def test_known_tokens_have_graphs_of_their_own_and_steps_need_none(
    labelled, options, device
) -> None:
    model, graphs = small_lpd().to(device), set()
    tokens, labels, orders = random_batch(0, batch_size=4)
    labels = labels if labelled else None
    for num_known, sizes in ((0, [16]), (1, [1] * 15), (6, [4, 6]), (6, [10])):
        given = model, labels, orders, sizes
        for seed in range(2):  # the second is a replay
            known = {"known": tokens.gather(1, orders[:, :num_known]), **options}
            fast = check_equal(*given, seed, **known)
            *_, last = generate_steps(*given, seed=seed, **known)
            assert torch.equal(last, fast)
        graphs.add(len(FastPath.of(model).graphs))
    assert graphs == ({1, 2, 3, 4} if device == "cuda" else {0})


def test_no_other_token_counts_as_a_tie() -> None:
    model, orders = small_lpd(), random_orders(2, NUM_TOKENS)
    plain = tokens_of(model, cfg=3.0)
    for position in (0, 9, 15):
        other = plain.clone()
        other[1, position] = (other[1, position] + 1) % 23
        with pytest.raises(AssertionError, match="image 1"):
            assert_same_but_for_ties(other, plain, model, LABELS[:2], orders, SIZES, cfg=3.0)


@torch.no_grad()
def test_bfloat16_logits_are_within_its_rounding(device: str) -> None:
    """Products round to 8 bits: 2**-8 of the logits' spread a layer, and no worse than plain's."""
    model = small_lpd(decoder_embed_dim=128, decoder_depth=6).to(device)
    for parameter in model.parameters():
        parameter.mul_(0.3)
    tokens, labels, orders = (x.to(device) for x in random_batch(0, batch_size=8))
    exact = model.forward_logits(tokens, labels, SIZES, orders)
    with torch.autocast(device, dtype=torch.bfloat16):
        network = FastPath.of(model).network(model)
        plain = model.forward_logits(tokens, labels, SIZES, orders)
    if network is None:
        pytest.skip("this processor has no bfloat16 products: the plain sampler stands in")
    fast = forced_logits(network, tokens, labels, SIZES, orders)
    assert fast.dtype == torch.bfloat16

    def error(logits: torch.Tensor) -> float:
        return float((logits.float() - exact).square().mean().sqrt() / exact.std())

    assert 1e-4 < error(fast) < 6 * 2**-8
    assert device == "cuda" or error(fast) < 1.2 * error(plain)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_products_rounded_beforehand_change_nothing_under_autocast(sampler: str) -> None:
    model = small_lpd()
    size = sum(weight.nbytes for weight in model.blocks.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = tokens_of(model, cfg=3.0, sampler=sampler)
        assert torch.equal(model.round_products().head.weight, model.head.weight.bfloat16())
        assert torch.equal(tokens_of(model, cfg=3.0, sampler=sampler), expected)
    assert sum(weight.nbytes for weight in model.blocks.parameters()) < 0.6 * size
    network = FastPath.of(model.bfloat16()).network(model) or model  # without such products
    assert network.new_cache(1).entries.dtype == torch.bfloat16
    assert tokens_of(model, sampler=sampler).shape == (2, NUM_TOKENS)


# Today's weights


def gradients(model: LPD) -> LPD:
    tokens, labels, orders = (x.to(model.pos_embed.device) for x in random_batch())
    model.train()(tokens, labels, SIZES, orders).backward()
    return model.eval()


def step_adamw(model: LPD) -> None:
    # fused, foreach and plain loops write in different ways
    for options in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        gradients(model)
        torch.optim.AdamW(model.parameters(), lr=0.1, **options).step()


def write(model: LPD, through_data: bool = False) -> None:
    """Through `.data` as some optimisers do; version counters do not count that."""
    for parameter in model.parameters():
        (parameter.data if through_data else parameter).add_(0.2)


def another() -> dict[str, torch.Tensor]:
    return small_lpd(int(torch.randint(9, 999, ()))).state_dict()


CHANGES = {
    "AdamW": step_adamw,
    "writes through data": lambda model: write(gradients(model), through_data=True),
    "such writes while training": lambda model: write(model.train(), through_data=True),
    "writes under inference mode": torch.inference_mode()(write),
    "other weights": lambda model: model.load_state_dict(another()),
    "assigned": lambda model: model.load_state_dict(another(), assign=True),
    "one bias": lambda model: nn.init.normal_(model.blocks[1].mlp.fc1.bias),
    "embeddings": lambda model: nn.init.normal_(model.token_emb.weight),
    "a layer": lambda model: setattr(model, "head", nn.Linear(32, 23, bias=False)),
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_seen(change, bf16, device) -> None:
    model = small_lpd().to(device)

    def tokens(model: LPD) -> torch.Tensor:
        # A call of its own: autocast keeps the plain sampler's cast weights until it ends.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            return tokens_of(model, batch_size=8)

    for in_inference_mode in (True, False):
        with torch.inference_mode(in_inference_mode):
            before = tokens(model)
        CHANGES[change](model)
        after = tokens(model.to(device))
        assert torch.equal(after, tokens(copy.deepcopy(model)))
        assert not torch.equal(after, before)


@torch.inference_mode()
def test_writes_to_weights_of_inference_mode_which_count_none_are_seen() -> None:
    model = small_lpd()
    before = tokens_of(model, batch_size=8)
    model.head.weight.neg_()
    after = tokens_of(model, batch_size=8)
    assert torch.equal(after, tokens_of(model, batch_size=8, sampler="plain"))
    assert not torch.equal(after, before)


def test_sampling_changes_no_weight_and_its_dtype_follows_the_call() -> None:
    model, (tokens, labels, orders) = small_lpd().train(), random_batch()
    loss = model(tokens, labels, SIZES, orders)
    versions = [parameter._version for parameter in model.parameters()]
    first = tokens_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens_of(model)
    for _ in range(2):  # the second time they are refreshed
        assert torch.equal(tokens_of(model), first)
    assert versions == [parameter._version for parameter in model.parameters()]
    loss.backward()


def test_weights_are_prepared_when_moved_and_refreshed_when_changed(device, monkeypatch) -> None:
    model, kept, done = small_lpd().to(device), [], []

    def spied(name: str, real: Callable) -> Callable:
        def spy(*arguments: object, **options: object) -> NetworkWeights | None:
            done.append((name, sum(weight() is not None for weight in kept)))
            return real(*arguments, **options)

        return spy

    for name in ("prepare", "refresh"):
        monkeypatch.setattr(NetworkWeights, name, spied(name, getattr(NetworkWeights, name)))
    for change in (None, None, gradients, None, None, CHANGES["one bias"], None):
        if change:
            change(model)
        tokens_of(model.eval())
    kept += [weakref.ref(weight) for weight in FastPath.of(model)._state._aliases]
    model.double()
    tokens_of(model.float())
    # What moved is let go of before new copies are made.
    assert kept and done == [("prepare", 0), *[("refresh", 0)] * 2, ("prepare", 0)]


def test_copies_and_pickles_leave_the_prepared_weights_behind() -> None:
    model = small_lpd()
    before = len(pickle.dumps(model))
    tokens, names = tokens_of(model), list(model.state_dict())
    assert len(pickle.dumps(model)) == before
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert FastPath.of(copied) is not FastPath.of(model)
        assert torch.equal(tokens_of(copied), tokens)
        assert list(copied.state_dict()) == names


def test_few_graphs_are_kept_and_none_of_weights_that_moved(device: str) -> None:
    model = small_lpd().to(device)
    graphs = FastPath.of(model).graphs
    for batch_size in range(1, MAX_GRAPHS + 3):
        tokens_of(model, batch_size=batch_size)
    assert len(graphs) == (MAX_GRAPHS if device == "cuda" else 0)
    model.to("cpu")
    tokens_of(model)
    assert len(graphs) == 0


# Where the plain sampler stands in


class OwnStep(LPD):
    def decode_step(self, *args: object) -> torch.Tensor:
        return super().decode_step(*args) * 2


def put(path: str, value: object) -> Callable[[LPD], None]:
    owner, _, name = path.rpartition(".")
    return lambda model: setattr(model.get_submodule(owner), name, value)


UNKNOWN = {
    "blocks.0.mlp is a Tanh, which it does not know": put("blocks.0.mlp", nn.Tanh()),
    "blocks.0.mlp has a forward hook": lambda model: model.blocks[0].mlp.register_forward_hook(
        lambda *args: args[-1] * 2
    ),
    "blocks.1.attn.proj has a forward of its own": put("blocks.1.attn.proj.forward", torch.neg),
    "norm is another LayerNorm than LPD has, which it does not know": put("norm.bias", None),
    "OwnStep has a decode_step of its own": put("__class__", OwnStep),
    "it computes in float32 or bfloat16, not torch.float64": LPD.double,
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_what_it_does_not_serve_is_sampled_plainly(reason, caplog) -> None:
    model = small_lpd()
    UNKNOWN[reason](model)
    with caplog.at_level(logging.WARNING):
        fast, plain = (tokens_of(model, cfg=2.0, sampler=sampler) for sampler in SAMPLERS)
        tokens_of(model)
    assert torch.equal(fast, plain)
    assert caplog.messages == [f"the plain sampler stands in for the fast one: {reason}"]


@torch.no_grad()
def test_the_compiled_form_is_the_same_and_compiles_a_bounded_number_of_times() -> None:
    """The form that a GPU runs."""
    torch.compiler.reset()
    model = small_lpd(decoder_depth=3)
    weights = NetworkWeights.prepare(model, torch.float32, packed=False)
    counter = Counter()
    network = FastNetwork(model, weights, Rows.compiled(weights, backend=counter))
    generator = torch.Generator().manual_seed(0)
    for batch_size, sizes in itertools.product([2, 3, 6], [SIZES, [1, 1, 2, 12], [1] * 16, [16]]):
        tokens, labels, orders = random_batch(generator, batch_size)
        exact = model.forward_logits(tokens, labels, sizes, orders)
        with torch.autocast("cpu", enabled=False, cache_enabled=False):  # as in a capture
            logits = forced_logits(network, tokens, labels, sizes, orders)
        assert (logits - exact).abs().max() < 1e-5
    assert counter.graphs <= 4
    torch.compiler.reset()
