"""The first step of three processes sums gradients as every later one, so a resumed run may too."""

import argparse
import copy
import json
import sys

import torch
from torch.nn.parallel import DistributedDataParallel

from dataset.batches import Batch
from engine_lpd import optimize, settle_buckets
from models.lpd import LPD, lpd_tiny
from tests.commands import succeed
from tests.unit.test_engine import CPU, FLAGS
from training.checkpoint import TrainingState
from training.recipe import Training
from util import distributed

SETTINGS = {
    "plain": {},
    "--accum_iter 2": {"accum_iter": 2},
    "--bf16 --grad_checkpointing": {"bf16": True},
}
STEPS = 3


def test_a_step_is_the_same_for_a_new_wrapper() -> None:
    found = json.loads(succeed("-m", "tests.unit.test_first_step", processes=3).stdout)
    for setting in SETTINGS:
        assert found[setting]["differ"] == 0
        assert found[setting]["differ unsettled"] > 0  # else this test says nothing
        assert found[setting]["changed"] == []  # and settling leaves nothing behind


def test_one_process_has_nothing_to_settle() -> None:
    run = run_of("plain")
    model = run.state.model.eval()
    settle_buckets(model, run, CPU)
    assert model.pos_embed.grad is None and not model.training


def run_of(setting: str) -> Training:
    sizes = {"img_size": 16, "vqgan_stride": 4, "vqgan_vocab_size": 32, "class_num": 3}
    model = lpd_tiny(**sizes, grad_checkpointing="--grad_checkpointing" in setting)
    args = argparse.Namespace(**{**FLAGS, **SETTINGS[setting]})
    state = TrainingState(model, torch.optim.AdamW(model.parameters()), args)
    return Training(state, None, None, [[1, 3, 4, 8], [16]])


def wrap(model: LPD) -> DistributedDataParallel:
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def changed_by_settling(run: Training, wrapper: DistributedDataParallel) -> list[str]:
    """Names of what `settle_buckets` changes although it must not."""
    model = run.state.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    settle_buckets(wrapper, run, CPU)
    after = model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    changed += [name for name, value in model.named_parameters() if value.grad is not None]
    return changed + ["random state"] * (not torch.equal(torch.get_rng_state(), random))


def try_setting(setting: str) -> dict[str, object]:
    """Train some steps, and take the last one again with new wrappers."""
    torch.manual_seed(0)
    run = run_of(setting)
    model, optimizer = run.state.model, run.state.optimizer
    wrapper = wrap(model)
    changed = changed_by_settling(run, wrapper)
    for step in range(STEPS):
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        take_step(wrapper, run, step)
    differ = []
    for settles in (True, False):
        again = run_of(setting)
        again.state.model.load_state_dict(saved[0])
        again.state.optimizer.load_state_dict(saved[1])
        wrapper = wrap(again.state.model)
        if settles:
            settle_buckets(wrapper, again, CPU)
        take_step(wrapper, again, STEPS - 1)
        state = again.state.model.state_dict()
        differ.append(sum(not torch.equal(state[k], v) for k, v in model.state_dict().items()))
    return {"changed": changed, "differ": differ[0], "differ unsettled": differ[1]}


def take_step(wrapper: DistributedDataParallel, run: Training, step: int) -> None:
    draws = torch.Generator().manual_seed(10 * step + distributed.rank())
    batch = Batch(
        torch.randint(32, (run.share, 16), generator=draws),
        torch.randint(3, (run.share,), generator=draws),
        torch.rand(run.share, 16, generator=draws).argsort(dim=1),
        torch.rand(run.share, generator=draws) < 0.5,
    )
    optimize(wrapper, batch, run, step, lr=1e-3)


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    every = distributed.gather({setting: try_setting(setting) for setting in SETTINGS})
    if distributed.is_main():
        assert all(one == every[0] for one in every), every
        sys.stdout.write(json.dumps(every[0]))
    distributed.stop()


if __name__ == "__main__":
    main()
