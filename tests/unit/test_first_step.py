"""The first step of three processes sums gradients as every later one, so a resumed run may too."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from dataset.batches import Batch
from engine_lpd import _optimize, settle_buckets
from models.lpd import LPD, lpd_tiny
from tests.commands import succeed
from tests.unit.test_engine import CPU, RECIPE
from util import distributed

RECIPE = replace(RECIPE, group_size_lists=[[1, 3, 4, 8], [16]])
SETTINGS = {
    "plain": RECIPE,
    "--accum_iter 2": replace(RECIPE, accum_iter=2),
    "--bf16 --grad_checkpointing": replace(RECIPE, bf16=True),
}
STEPS = 3


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    """What three processes found, by setting."""
    return json.loads(succeed("-m", "tests.unit.test_first_step", processes=3).stdout)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_is_the_same_for_a_new_wrapper(found: dict[str, dict], setting: str) -> None:
    assert found[setting]["differ"] == 0
    assert found[setting]["differ unsettled"] > 0  # else this test says nothing


@pytest.mark.parametrize("setting", SETTINGS)
def test_settling_leaves_nothing_behind(found: dict[str, dict], setting: str) -> None:
    assert found[setting]["changed"] == []


def test_one_process_has_nothing_to_settle() -> None:
    model = torch.nn.Linear(1, 1).eval()
    settle_buckets(model, RECIPE, CPU)
    assert model.weight.grad is None and not model.training


def changed_by_settling(model: LPD, wrapper: DistributedDataParallel, setting: str) -> list[str]:
    """Names of what `settle_buckets` changes although it must not."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    settle_buckets(wrapper, SETTINGS[setting], CPU)
    after = model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    changed += [name for name, value in model.named_parameters() if value.grad is not None]
    return changed + ["random state"] * (not torch.equal(torch.get_rng_state(), random))


def try_setting(setting: str) -> dict[str, object]:
    """Train some steps, and take the last one again with new wrappers."""
    recipe = SETTINGS[setting]
    torch.manual_seed(0)
    checkpointing = "--grad_checkpointing" in setting
    sizes = {"img_size": 16, "vqgan_stride": 4, "vqgan_vocab_size": 32, "class_num": 3}
    model = lpd_tiny(**sizes, grad_checkpointing=checkpointing)
    optimizer = torch.optim.AdamW(model.parameters())
    wrapper = DistributedDataParallel(model, gradient_as_bucket_view=True)
    changed = changed_by_settling(model, wrapper, setting)
    for step in range(STEPS):
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        take_step(wrapper, optimizer, step, setting)
    differ = []
    for settles in (True, False):
        again = lpd_tiny(**sizes, grad_checkpointing=checkpointing)
        again.load_state_dict(saved[0])
        optimizer = torch.optim.AdamW(again.parameters())
        optimizer.load_state_dict(saved[1])
        wrapper = DistributedDataParallel(again, gradient_as_bucket_view=True)
        if settles:
            settle_buckets(wrapper, recipe, CPU)
        take_step(wrapper, optimizer, STEPS - 1, setting)
        state = again.state_dict()
        differ.append(sum(not torch.equal(state[k], v) for k, v in model.state_dict().items()))
    return {"changed": changed, "differ": differ[0], "differ unsettled": differ[1]}


def take_step(
    wrapper: DistributedDataParallel, optimizer: torch.optim.AdamW, step: int, setting: str
) -> None:
    recipe = SETTINGS[setting]
    draws = torch.Generator().manual_seed(10 * step + distributed.rank())
    images = recipe.batch_size * recipe.accum_iter
    batch = Batch(
        torch.randint(32, (images, 16), generator=draws),
        torch.randint(3, (images,), generator=draws),
        torch.rand(images, 16, generator=draws).argsort(dim=1),
        torch.rand(images, generator=draws) < 0.5,
    )
    _optimize(wrapper, optimizer, batch, recipe, step, lr=1e-3)


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    every = distributed.gather({setting: try_setting(setting) for setting in SETTINGS})
    if distributed.is_main():
        assert all(found == every[0] for found in every), every
        sys.stdout.write(json.dumps(every[0]))
    distributed.stop()


if __name__ == "__main__":
    main()
