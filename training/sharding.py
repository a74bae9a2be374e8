"""Parameters and optimiser state spread over the processes (PyTorch's FSDP2), files as ever."""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models.lpd import LPD
from util import distributed


def shard(model: LPD, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Leave each process its part of the weights and moments; blocks are gathered when they run.

    Changes the model and its optimiser, whole on every process, in place.
    """
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    names = {parameter: name for name, parameter in model.named_parameters()}
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[parameter]] for parameter in group["params"]]
    for parameter in [*optimizer.state]:
        part = sharded[names[parameter]]
        optimizer.state[part] = {
            key: distribute_tensor(value, mesh, part.placements)
            if value.shape == part.shape
            else value
            for key, value in optimizer.state.pop(parameter).items()
        }


def map_leaves(content: Any, change: Callable[[Any], Any]) -> Any:
    """Return the same nest of dictionaries and lists with every leaf changed."""
    if isinstance(content, dict):
        return {key: map_leaves(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map_leaves(value, change) for value in content)
    return change(content)


def gathered(value: Any) -> Any:
    """Gather a sharded tensor: whole on the CPU of rank 0, else None; all processes call it."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if distributed.is_main() else None
