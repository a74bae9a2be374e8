"""Parameters and optimiser state spread over the processes (PyTorch's FSDP2), files as ever."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models.lpd import LPD
from util import distributed


def shard(
    model: LPD, optimizer: torch.optim.Optimizer, device: torch.device
) -> torch.optim.Optimizer:
    """Leave each process its part of the weights and moments; blocks are gathered when they run.

    Args:
        model: whole on every process; changed in place.
        optimizer: of its parameters, possibly with state.
        device: where the model is.

    Returns:
        The optimiser of the sharded parameters, with the same settings and state.
    """
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    moments = {names[parameter]: state for parameter, state in optimizer.state.items()}
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = dict(model.named_parameters())
    for group in groups:
        group["params"] = [sharded[name] for name in group["params"]]
    optimizer = type(optimizer)(groups)
    for name, state in moments.items():
        parameter = sharded[name]
        optimizer.state[parameter] = {
            key: distribute_tensor(value, mesh, parameter.placements)
            if value.shape == parameter.shape
            else value
            for key, value in state.items()
        }
    return optimizer


def gathered(content: Any) -> Any:
    """The same nest of dictionaries and lists with whole tensors, on the CPU of rank 0.

    All processes call it together. Sharded tensors are None on the others.
    """
    if isinstance(content, dict):
        return {key: gathered(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(gathered(value) for value in content)
    if isinstance(content, DTensor):
        whole = content.full_tensor()
        return whole.cpu() if distributed.is_main() else None
    return content
