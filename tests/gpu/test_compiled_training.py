"""The compiled training step with sparse masks on a GPU: the plain step's loss and gradients."""

import pytest
import torch
from torch._dynamo.utils import counters

from models.lpd import LPD
from tests.unit.models.small import small_lpd
from tests.unit.models.test_compiled_training import CASES, LISTS, batch_for, gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def model_for(num_tokens: int) -> LPD:
    return small_lpd(img_size=int(num_tokens**0.5) * 4, decoder_num_heads=2).train().to("cuda")


@pytest.mark.parametrize(("num_tokens", "sizes"), CASES)
def test_loss_and_gradients_are_the_plain_steps(num_tokens: int, sizes: list[int]) -> None:
    plain, compiled = model_for(num_tokens), model_for(num_tokens)
    compiled.compile_blocks(sparse=True)
    tokens, labels, orders = (x.to("cuda") for x in batch_for(num_tokens))
    drop = torch.tensor([False, True], device="cuda")
    losses = [model(tokens, labels, sizes, orders, drop) for model in (plain, compiled)]
    assert abs(losses[0] - losses[1]) < 1e-5
    for loss in losses:
        loss.backward()
    expected = gradients(plain)
    for name, found in gradients(compiled).items():
        difference = (found - expected[name]).norm()
        assert difference < 1e-4 * expected[name].norm() + 1e-7, name


@pytest.mark.parametrize("num_tokens", LISTS)
def test_all_lists_share_one_program(num_tokens: int) -> None:
    torch.compiler.reset()
    counters.clear()
    model = model_for(num_tokens)
    model.compile_blocks(sparse=True)
    tokens, labels, orders = (x.to("cuda") for x in batch_for(num_tokens))
    for sizes in LISTS[num_tokens]:
        model(tokens, labels, sizes, orders).backward()
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_steps_in_bfloat16_never_wait_for_the_gpu(grad_checkpointing: bool) -> None:
    torch.compiler.reset()
    lists = LISTS[256][:3]
    plain, model = model_for(256), model_for(256)
    model.grad_checkpointing = grad_checkpointing
    model.compile_blocks(sparse=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens, labels, orders = (x.to("cuda") for x in batch_for(256))
    drop = torch.tensor([False, True], device="cuda")

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
