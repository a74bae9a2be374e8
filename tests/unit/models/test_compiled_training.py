"""The compiled training step: sparse masks, one program for all lists, the plain step's numbers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from models import transformer
from models.lpd import LPD
from orders.group_sizes import training_group_sizes
from tests.unit.models.small import random_batch, small_lpd

LISTS = {num_tokens: training_group_sizes(num_tokens) for num_tokens in (256, 1024)}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


class Counter:
    """A backend that runs what it is given and counts it."""

    graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


def batch_for(num_tokens: int, device: str) -> list[torch.Tensor]:
    return [x.to(device) for x in random_batch(0, 2, num_tokens)]


def model_for(num_tokens: int, device: str, heads: int = 2) -> LPD:
    side = int(num_tokens**0.5)
    return small_lpd(img_size=4 * side, decoder_num_heads=heads).train().to(device)


def dense_flex_attention(q, k, v, block_mask):
    """What the sparse kernel computes; PyTorch's own has no backward pass on a CPU."""
    index = torch.arange(q.shape[2])
    mask = block_mask.mask_mod(0, 0, index[:, None], index[None, :])
    return F.scaled_dot_product_attention(q, k, v, mask)


@pytest.mark.parametrize("sizes", [*LISTS[256], *LISTS[1024]], ids=lambda x: f"{sum(x)}-{len(x)}")
def test_loss_and_gradients_are_the_plain_steps(sizes, device, monkeypatch) -> None:
    num_tokens = sum(sizes)
    if device == "cpu":
        monkeypatch.setattr(transformer, "flex_attention", dense_flex_attention)
    plain, compiled = model_for(num_tokens, device), model_for(num_tokens, device)
    compiled.compile_blocks(sparse=True, backend="eager" if device == "cpu" else "inductor")
    drop = torch.tensor([False, True], device=device)
    tokens, labels, orders = batch_for(num_tokens, device)
    losses = [model(tokens, labels, sizes, orders, drop) for model in (plain, compiled)]
    assert abs(losses[0] - losses[1]) < 1e-5
    for loss in losses:
        loss.backward()
    for expected, found in zip(plain.parameters(), compiled.parameters(), strict=True):
        difference = (found.grad - expected.grad).norm()
        assert difference < 1e-4 * expected.grad.norm() + 1e-7


@pytest.mark.parametrize("heads", [2, 4])  # the smaller heads of 4 keep dense masks
@pytest.mark.parametrize("num_tokens", LISTS)
def test_all_lists_and_blocks_share_one_program(num_tokens, heads, device) -> None:
    if (heads, device) == (4, "cuda"):
        pytest.skip("for a CPU")
    plain, counter = model_for(num_tokens, device, heads), Counter()
    model = model_for(num_tokens, device, heads)
    model.compile_blocks(sparse=True, backend=counter if device == "cpu" else "inductor")
    tokens, labels, orders = batch_for(num_tokens, device)
    drop = torch.tensor([False, True], device=device)
    for sizes in LISTS[num_tokens][:: 3 if device == "cpu" else 1]:
        with torch.set_grad_enabled(device == "cuda" or heads == 4):  # forward only on sparse CPUs
            loss = model(tokens, labels, sizes, orders, drop)
        assert abs(loss - plain(tokens, labels, sizes, orders, drop)) < 1e-5
        if device == "cuda":
            loss.backward()
    assert counter.graphs == 1 if device == "cpu" else counters["stats"]["unique_graphs"] <= 2


@torch.no_grad()
def test_ddp_leaves_large_blocks_whole(tmp_path: Path) -> None:
    """A block of this width holds 50 MB: two of the buckets that PyTorch would cut it into."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, counter = small_lpd(decoder_embed_dim=1024, decoder_num_heads=16), Counter()
        tokens, labels, orders = random_batch()
        expected = model(tokens, labels, [4, 12], orders)
        model.compile_blocks(sparse=True, backend=counter)
        loss = DistributedDataParallel(model)(tokens, labels, [4, 12], orders)
    finally:
        dist.destroy_process_group()
    assert abs(loss - expected) < 1e-4
    assert counter.graphs == 1


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_steps_in_bfloat16_never_wait_for_the_gpu(grad_checkpointing: bool, device: str) -> None:
    if device == "cpu":
        pytest.skip("never waits")
    lists = LISTS[256][:3]
    plain, model = model_for(256, device), model_for(256, device)
    model.grad_checkpointing = grad_checkpointing
    model.compile_blocks(sparse=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens, labels, orders = batch_for(256, device)
    drop = torch.tensor([False, True], device=device)

    def step(sizes: list[int]) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(2):  # accumulation
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(tokens, labels, sizes, orders, drop)
            (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        return loss.detach()

    first, *_ = [step(sizes) for sizes in lists]
    with torch.no_grad():
        assert abs(first - plain(tokens, labels, lists[0], orders, drop)) < 0.05
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(sizes) for sizes in lists]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[0] < first
