"""Process group set-up and the few collectives this project needs."""

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from util.device import has_bf16_products
from util.errors import UserError, describe_os_error

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """Where this process stands among those the launcher started."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    init_method: str = "env://"


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the published launch flags; under torchrun none of them is needed."""
    group = parser.add_argument_group("distributed (torchrun sets these)")
    group.add_argument("--world_size", type=int, default=1, help="number of processes")
    group.add_argument("--local_rank", type=int, default=-1, help="process number on this node")
    group.add_argument("--dist_on_itp", action="store_true", help="read Open MPI's variables")
    group.add_argument("--dist_url", default="env://", help="rendezvous of the process group")


def read_launch(args: argparse.Namespace) -> Launch:
    """Work out rank and world size from torchrun's variables, or Open MPI's (`--dist_on_itp`)."""
    env = os.environ
    try:
        if args.dist_on_itp:
            names = (f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK"))
            rank, size, local = (int(env[name]) for name in names)
            address = f"tcp://{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
            env["RANK"], env["WORLD_SIZE"] = str(rank), str(size)
            return Launch(rank, size, local, address)
        if "RANK" in env and "WORLD_SIZE" in env:
            local = int(env.get("LOCAL_RANK", max(args.local_rank, 0)))
            return Launch(int(env["RANK"]), int(env["WORLD_SIZE"]), local, args.dist_url)
    except KeyError as error:
        raise UserError(f"--dist_on_itp: {error.args[0]} is not set, expected Open MPI") from error
    except ValueError as error:
        raise UserError(f"launcher variables: {error}, expected whole numbers") from error
    if args.world_size > 1:
        found = f"found {args.world_size} but no RANK and WORLD_SIZE"
        raise UserError(f"--world_size: {found}, expected a start by torchrun")
    return Launch()


def resolve_device(args: argparse.Namespace, launch: Launch) -> torch.device:
    """Choose a process's device, on `cuda` by local rank; end `args.bf16` where it is slow."""
    name = args.device
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: found {name!r}, expected cpu or cuda")
    if device.type == "cpu":
        if getattr(args, "bf16", False) and not has_bf16_products():
            logger.warning("--bf16: this processor has no bfloat16 products; float32 is faster")
            args.bf16 = False
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError(f"--device: found {name!r} but no usable GPU, expected --device cpu here")
    index = device.index if device.index is not None else launch.local_rank
    if index >= count:
        raise UserError(f"--device: GPU {index} asked for, expected one of the {count} here")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


@contextmanager
def start(launch: Launch, device: torch.device) -> Iterator[None]:
    """Have a process group (nccl on GPUs, gloo on CPU) inside the block; none of one process."""
    on_gpu = device.type == "cuda"
    if launch.world_size > 1:
        dist.init_process_group(
            backend="nccl" if on_gpu else "gloo",
            init_method=launch.init_method,
            world_size=launch.world_size,
            rank=launch.rank,
            device_id=device if on_gpu else None,
        )
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def rank() -> int:
    """Return this process's number; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Count the processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Tell whether this process logs, draws progress bars and writes shared files."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """Collect every process's `value` (any picklable object), by rank."""
    values: list[Any] = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def gather_to_main(value: T) -> list[T] | None:
    """Collect the same on rank 0 only; None elsewhere."""
    values: list[Any] | None = [value] * world_size() if is_main() else None
    if dist.is_initialized():
        dist.gather_object(value, values)
    return values


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum elementwise over all processes, in the place of `values`; no wait on a GPU."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def fail_together(work: Callable[[], T]) -> T:
    """Run `work` on every process; if it fails as bad input on any, fail on all alike."""
    # Else the others would be left waiting in a collective.
    result, message = None, None
    try:
        result = work()
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = describe_os_error(error)
    for failure in gather(message):
        if failure is not None:
            raise UserError(failure)
    return result  # type: ignore[return-value]
