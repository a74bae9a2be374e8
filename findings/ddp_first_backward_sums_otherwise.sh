#!/usr/bin/env bash
# DistributedDataParallel: the first backward pass through a wrapper does not give the gradients that
# every later pass gives for the same weights and the same batch - once three or more processes add up.
#
# Guess:     same weights, same batch, same processes: the same bits from every backward pass.
# Behaviour: with 2 processes so it is. With 3, gradients of the first pass differ from those of the
#            second in their last bits, and the second equals the third: after the first pass the
#            wrapper lays out its buckets anew (the order in which gradients became ready), and where
#            in a bucket a gradient lies decides in which order gloo adds it up. So a job that saves,
#            stops and resumes ends with other weights than one that never stopped, unless the first
#            pass is thrown away.
# Seen with: torch 2.15.0, Python 3.11, gloo on a CPU.
# Exits 1 if it is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.15.0 numpy==2.4.6

cat >"$folder/passes.py" <<'PY'
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def gradients(model, batch):
    model.zero_grad()
    model(batch).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def differing(first, second):
    return sum(not torch.equal(a, b) for a, b in zip(first, second))


def work(rank, processes, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29600 + processes))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(96, 96), nn.GELU()) for _ in range(12)]
    model = DistributedDataParallel(nn.Sequential(*layers), bucket_cap_mb=0.1)
    torch.manual_seed(1 + rank)
    batch = torch.randn(16, 96)
    passes = [gradients(model, batch) for _ in range(3)]
    if rank == 0:
        results.put((differing(*passes[:2]), differing(*passes[1:]), len(passes[0])))
    dist.destroy_process_group()


if __name__ == "__main__":
    results = mp.get_context("spawn").SimpleQueue()
    found = {}
    for processes in (2, 3):
        mp.spawn(work, (processes, results), nprocs=processes)
        first, later, count = found[processes] = results.get()
        print(
            f"torch {torch.__version__}, {processes} processes: {first} of {count} gradients of "
            f"pass 1 differ from pass 2, {later} of pass 2 from pass 3"
        )
    (two, _, _), (three, later, _) = found[2], found[3]
    sys.exit(0 if two == 0 and three > 0 and later == 0 else 1)
PY
"$folder/venv/bin/python" "$folder/passes.py"
