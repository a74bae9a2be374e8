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
from tests.unit.models.small import Counter, random_batch, small_lpd

LISTS = {num_tokens: training_group_sizes(num_tokens) for num_tokens in (256, 1024)}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def batch_for(num_tokens: int, device: str) -> dict[str, torch.Tensor]:
    names = "tokens", "labels", "orders", "label_drop"
    values = *random_batch(0, 2, num_tokens), torch.tensor([False, True])
    return {name: x.to(device) for name, x in zip(names, values, strict=True)}


def model_for(num_tokens: int, device: str, heads: int = 2) -> LPD:
    side = int(num_tokens**0.5)
    return small_lpd(img_size=4 * side, decoder_num_heads=heads).train().to(device)


def dense_flex_attention(q, k, v, block_mask):
    """What the sparse kernel computes; PyTorch's own has no backward pass on a CPU."""
    index = torch.arange(q.shape[2])
    mask = block_mask.mask_mod(0, 0, index[:, None], index[None, :])
    return F.scaled_dot_product_attention(q, k, v, mask)


# The smaller heads of 4 keep dense masks.
@pytest.mark.parametrize(("heads", "stand_in"), [(2, True), (2, False), (4, False)])
@pytest.mark.parametrize("num_tokens", LISTS)
def test_all_lists_share_one_program_with_the_plain_steps_loss_and_gradients(
    num_tokens, heads, stand_in, device, monkeypatch
) -> None:
    on_gpu, counter = device == "cuda", Counter()
    if on_gpu and (heads, stand_in) != (2, False):
        pytest.skip("for a CPU")
    if stand_in:
        monkeypatch.setattr(transformer, "flex_attention", dense_flex_attention)
    plain, compiled = (model_for(num_tokens, device, heads) for _ in range(2))
    compiled.compile_blocks(sparse=True, backend="inductor" if on_gpu else counter)
    batch, backward = batch_for(num_tokens, device), on_gpu or stand_in
    for sizes in LISTS[num_tokens][:: 1 if backward else 3]:
        with torch.set_grad_enabled(backward or heads == 4):  # forward only on sparse CPUs
            losses = [model(group_sizes=sizes, **batch) for model in (plain, compiled)]
        assert abs(losses[0] - losses[1]) < 1e-5
        if not backward:
            continue
        weights = list(plain.parameters()), list(compiled.parameters())
        gradients = map(torch.autograd.grad, losses, weights)
        for expected, found in zip(*gradients, strict=True):
            assert (found - expected).norm() < 1e-4 * expected.norm() + 1e-7
    assert counters["stats"]["unique_graphs"] <= 2 if on_gpu else counter.graphs == 1


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
    lists, batch = LISTS[256][:3], batch_for(256, device)
    plain, model = model_for(256, device), model_for(256, device)
    model.grad_checkpointing = grad_checkpointing
    model.compile_blocks(sparse=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(sizes: list[int]) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(2):  # accumulation
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(group_sizes=sizes, **batch)
            (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        return loss.detach()

    first, *_ = [step(sizes) for sizes in lists]
    with torch.no_grad():
        assert abs(first - plain(group_sizes=lists[0], **batch)) < 0.05
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(sizes) for sizes in lists]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[0] < first
