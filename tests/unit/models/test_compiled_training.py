"""The compiled training step: sparse masks, one program for all lists, the plain step's numbers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from models import transformer
from models.lpd import LPD
from models.masks import group_causal_block_mask, group_causal_mask
from orders.group_sizes import training_group_sizes
from tests.unit.models.small import VOCAB, random_batch, small_lpd

LISTS = {256: training_group_sizes(256), 1024: training_group_sizes(1024)}
CASES = [(n, sizes) for n, lists in LISTS.items() for sizes in lists]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counter:
    """A backend that runs what it is given and counts it."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


def batch_for(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (2, num_tokens), generator=generator)
    orders = torch.rand(2, num_tokens, generator=generator).argsort(dim=1)
    return tokens, torch.tensor([1, 3]), orders


def model_for(num_tokens: int, **options: object) -> LPD:
    return small_lpd(img_size=int(num_tokens**0.5) * 4, decoder_num_heads=2, **options)


def gradients(model: LPD) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("num_tokens", "sizes"), CASES)
def test_the_sparse_mask_is_the_dense_one(num_tokens: int, sizes: list[int]) -> None:
    device = torch.device("cpu")
    sparse = group_causal_block_mask(sizes, device)
    index = torch.arange(2 * num_tokens)
    unseen = num_tokens - sizes[-1] + 1  # context rows of the last group: nobody looks at them
    kept = torch.cat([index[:unseen], index[num_tokens:]])
    whole = sparse.mask_mod(0, 0, index[:, None], index[None, :])
    assert torch.equal(whole[kept[:, None], kept], group_causal_mask(sizes, device))
    assert not whole[kept, unseen:num_tokens].any()
    assert whole.any(dim=1).all()  # a row without anything to see would be NaN


def dense_flex_attention(q, k, v, block_mask):
    """What the sparse kernel computes; PyTorch's own has no backward pass on a CPU."""
    index = torch.arange(q.shape[2])
    mask = block_mask.mask_mod(0, 0, index[:, None], index[None, :])
    return F.scaled_dot_product_attention(q, k, v, mask)


@pytest.mark.parametrize(("num_tokens", "sizes"), CASES)
def test_loss_and_gradients_are_the_plain_steps(
    num_tokens: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "flex_attention", dense_flex_attention)
    plain, compiled = model_for(num_tokens).train(), model_for(num_tokens).train()
    compiled.compile_blocks(sparse=True, backend="eager")
    tokens, labels, orders = batch_for(num_tokens)
    drop = torch.tensor([False, True])
    losses = [model(tokens, labels, sizes, orders, drop) for model in (plain, compiled)]
    assert abs(losses[0] - losses[1]) < 1e-5
    for loss in losses:
        loss.backward()
    expected = gradients(plain)
    for name, found in gradients(compiled).items():
        difference = (found - expected[name]).norm()
        assert difference < 1e-4 * expected[name].norm() + 1e-7, name


@pytest.mark.parametrize("num_tokens", LISTS)
@torch.no_grad()
def test_all_lists_and_blocks_share_one_program(num_tokens: int) -> None:
    plain, model, counter = model_for(num_tokens), model_for(num_tokens), Counter()
    model.compile_blocks(sparse=True, backend=counter)
    tokens, labels, orders = batch_for(num_tokens)
    for sizes in LISTS[num_tokens][::3]:
        loss = model(tokens, labels, sizes, orders)
        assert abs(loss - plain(tokens, labels, sizes, orders)) < 1e-5
    assert counter.graphs == 1


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@torch.no_grad()
def test_ddp_leaves_large_blocks_whole(one_process: None) -> None:
    """A block of this width holds 50 MB: two of the buckets that PyTorch would cut it into."""
    model, counter = small_lpd(decoder_embed_dim=1024, decoder_num_heads=16), Counter()
    tokens, labels, orders = random_batch(torch.Generator().manual_seed(0))
    expected = model(tokens, labels, [4, 12], orders)
    model.compile_blocks(sparse=True, backend=counter)
    loss = DistributedDataParallel(model)(tokens, labels, [4, 12], orders)
    assert abs(loss - expected) < 1e-4
    assert counter.graphs == 1


def test_small_heads_keep_dense_masks() -> None:
    model, counter = small_lpd().train(), Counter()
    model.compile_blocks(sparse=True, backend=counter)
    tokens, labels, orders = random_batch(torch.Generator().manual_seed(0))
    for sizes in ([1, 3, 5, 7], [4, 4, 4, 4], [1] * 16, [2, 14]):
        drop = torch.tensor([False, True, False])
        loss = model(tokens, labels, sizes, orders, drop)
        assert abs(loss - small_lpd()(tokens, labels, sizes, orders, drop)) < 1e-5
    assert counter.graphs == 1
