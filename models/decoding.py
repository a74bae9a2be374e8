"""Parallel decoding: a plan becomes a grid of tokens, group by group (method section 4)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.cuda_graphs import CaptureError
from models.fast import FastNetwork, FastPath
from models.lpd import LPD
from models.sampling import SamplingSettings, guidance_scales, pick
from orders.group_sizes import remaining_group_sizes
from orders.plan import GenerationPlan
from orders.sources import locality_aware
from util import streams
from util.device import to_device
from util.errors import compile_failure

SAMPLERS = ("fast", "plain")
# In the place of a code, where a position has not been decoded yet.
UNDECIDED = -1


@torch.no_grad()
def generate(
    model: LPD,
    labels: Tensor | Sequence[int] | None,
    orders: Tensor | np.ndarray | None,
    group_sizes: Sequence[int] | int,
    sampling: SamplingSettings | None = None,
    *,
    known: Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
    sampler: str = "fast",
    **fields: Any,
) -> Tensor:
    """Generate B images in K steps: (B, N) int64 codes on the model's device, raster order.

    Image i consumes one uniform number per position, drawn from (seed, image_ids[i], position)
    alone, so it does not depend on its batch. Dropout is off; honours an enclosing
    `torch.autocast`. A ValueError names an argument that is out of range.

    Args:
        labels: (B,) int64 in [0, class_num); None generates without a class.
        orders: (B, N) raster positions in generation order; None makes locality-aware ones, as
            `--order lpd` does without a file, of (seed, image_ids[i]).
        group_sizes: K positive sizes that sum to N - M; or K, see `remaining_group_sizes`.
        sampling: guidance, temperature and filters, also by name as `fields`. For the `linear`
            schedule known tokens count as generated.
        known: (B, M) int64 codes of the first M positions of the orders, which the images keep:
            one group of context, after the class (method section 10).
        image_ids: (B,) whole numbers that name the images; `range(B)` if None.
        sampler: `plain` runs the model as it is; `fast` runs the same steps with prepared weights
            and, on a GPU, as one CUDA graph. Where it cannot, the plain one stands in.
    """
    fast, given = _is_fast(sampler), (labels, orders, group_sizes, sampling, known, seed, image_ids)
    job = _prepare(model, *given, **fields)
    tokens = _decode_fast(model, job) if fast else None
    if tokens is None:
        with _around(model, model):
            *_, tokens = job.decode(model, *job.inputs)
    return tokens


@torch.no_grad()
def generate_steps(
    model: LPD, *arguments: Any, sampler: str = "fast", **options: Any
) -> Iterator[Tensor]:
    """As `generate`, one step at a time; arguments and errors are the same, and come at the call.

    Yields the (B, N) tokens after every step, -1 where they are not decided yet; all known, once.
    Each step is computed when it is asked for. The `torch.autocast` that holds when the first one
    is asked for decides for all of them; from then on the model must not change.
    """
    fast = _is_fast(sampler)  # before orders are made
    return _in_steps(model, _prepare(model, *arguments, **options), fast)


@dataclass(frozen=True, eq=False)
class _Job:
    """What to generate: checked, and on the model's device."""

    plan: GenerationPlan
    settings: SamplingSettings
    # Orders (B, N), uniform numbers (B, N) in raster order, known codes (B, M), labels (B,) if any.
    inputs: list[Tensor]

    def decode(self, network, orders, uniforms, known, labels=None) -> Iterator[Tensor]:
        """The decoding loop, of `inputs` or, in a CUDA graph, others of the same shapes.

        Yields the tokens so far (B, N) after each step: one tensor, which the next step writes to.
        """
        uniforms = uniforms.gather(1, orders)
        scales = guidance_scales(self.settings, self.plan.num_tokens, orders.device)
        known_positions = orders[:, : self.plan.num_known]
        tokens = torch.full_like(orders, UNDECIDED).scatter_(1, known_positions, known)
        if not self.plan.group_sizes:
            yield tokens
            return

        def both_halves(x: Tensor) -> Tensor:  # conditional and unconditional
            return torch.cat([x, x]) if self.settings.guided else x

        context = network.embed_class(labels, len(orders))
        if self.settings.guided:
            context = torch.cat([context, network.embed_class(None, len(orders))])
        if self.plan.num_known:
            known_context = both_halves(network.embed_tokens(known, known_positions))
            context = torch.cat([context, known_context], dim=1)
        all_queries = both_halves(network.embed_queries(orders))
        cache = network.new_cache(len(context))
        for start, stop in self.plan.steps():
            positions = orders[:, start:stop]
            logits = network.decode_step(context, all_queries[:, start:stop], cache)
            drawn = pick(logits, scales[start:stop], uniforms[:, start:stop], self.settings)
            tokens.scatter_(1, positions, drawn)
            yield tokens
            context = both_halves(network.embed_tokens(drawn, positions))


def _is_fast(sampler: str) -> bool:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: found {sampler!r}, expected one of {SAMPLERS}")
    return sampler == "fast"


def _prepare(
    model, labels, orders, group_sizes, sampling=None, known=None, seed=0, image_ids=None, **fields
) -> _Job:
    """Check the arguments of `generate` and put them where the model is."""
    settings = replace(sampling or SamplingSettings(), **fields)
    check_whole("seed", np.asarray(seed), ())
    if labels is not None:
        labels = torch.atleast_1d(torch.as_tensor(labels))
    elif settings.guided:
        raise ValueError(f"cfg: found {settings.cfg} without labels, expected 1")
    num_tokens, num_known = model.grid.num_tokens, 0 if known is None else known.shape[-1]
    if np.ndim(group_sizes) == 0:
        group_sizes = remaining_group_sizes(num_tokens, num_known, group_sizes)
    ids = None if image_ids is None else np.asarray(image_ids)
    if orders is None:
        if known is not None:
            raise ValueError("orders: found none, expected those that begin with what is known")
        if ids is None and labels is None:
            raise ValueError("orders: found none, and no labels or image_ids, expected one of them")
        ids = np.arange(len(labels)) if ids is None else ids
        orders = locality_aware(model.grid, seed)(ids, group_sizes)
    plan = GenerationPlan.build(orders, group_sizes, num_tokens, num_known)
    batch_size, device = len(plan.orders), model.pos_embed.device
    ids = np.arange(batch_size) if ids is None else ids
    if known is None:
        known = torch.empty(batch_size, 0, dtype=torch.int64)
    check_whole("image_ids", ids, (batch_size,))
    check_whole("known", known, (batch_size, num_known), model.grid.vocab_size)
    uniforms = torch.from_numpy(streams.uniforms("sampling", seed, ids, count=num_tokens))
    inputs = [plan.orders, uniforms, known.long()]
    if labels is not None:
        check_whole("labels", labels, (batch_size,), model.class_num)
        inputs.append(labels.long())
    return _Job(plan, settings, [to_device(x, device) for x in inputs])


def check_whole(
    name: str, values: Tensor | np.ndarray, shape: tuple[int, ...], stop: int | None = None
) -> None:
    """Raise ValueError unless an argument holds whole numbers of a shape, in [0, stop)."""
    if tuple(values.shape) != shape or "int" not in str(values.dtype):  # of PyTorch or NumPy
        found = f"{values.dtype} of shape {tuple(values.shape)}"
        raise ValueError(f"{name}: found {found}, expected whole numbers {shape}")
    if stop is not None and 0 not in shape and (values.min() < 0 or values.max() >= stop):
        found = f"{int(values.min())}..{int(values.max())}"
        raise ValueError(f"{name}: found {found}, expected 0..{stop - 1}")


def _around(model: LPD, network: LPD | FastNetwork) -> AbstractContextManager[Any]:
    if network is model:
        return eval_mode(model)
    # The fast network casts what it wants cast. Without autocast's cache, as where its rows were
    # compiled: other states would compile them again.
    return torch.autocast(model.pos_embed.device.type, enabled=False, cache_enabled=False)


def _decode_fast(model: LPD, job: _Job) -> Tensor | None:
    """Decode with prepared weights, on a GPU as one graph; None where that is impossible."""
    fast_path = FastPath.of(model)
    network = fast_path.network(model)
    if network is None:
        return None

    def decode(*inputs: Tensor) -> Tensor:
        *_, tokens = job.decode(network, *inputs)
        return tokens

    with _around(model, network):
        if model.pos_embed.device.type != "cuda":
            return decode(*job.inputs)
        try:
            # Shapes tell guided, labelled, what is known and batch sizes apart; the grid belongs
            # to the model.
            return fast_path.graphs.run((job.plan.group_sizes, job.settings), decode, *job.inputs)
        except CaptureError as error:
            reason = str(error)
        except RuntimeError as error:
            # A shape that the compiler sees for the first time may fail it.
            reason = compile_failure(error)
            if reason is None:
                raise
            reason = f"it cannot be compiled: {reason}"
    fast_path.use_plain(reason)
    return None


def _in_steps(model: LPD, job: _Job, fast: bool) -> Iterator[Tensor]:
    """Copies of what each step leaves; what surrounds one holds while it is computed only."""
    device = model.pos_embed.device.type
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    network = (FastPath.of(model).network(model) if fast else None) or model
    steps = job.decode(network, *job.inputs)
    while True:
        autocast = torch.autocast(device, dtype, enabled)
        # A tensor of a caller's inference mode could not be written to by a step outside it.
        with torch.inference_mode(False), torch.no_grad(), autocast, _around(model, network):
            tokens = next(steps, None)
        if tokens is None:
            return
        yield tokens.clone()


@contextmanager
def eval_mode(model: LPD) -> Iterator[None]:
    """Turn dropout off inside the block; the model's mode is restored after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
