"""Parallel decoding: a plan becomes a grid of tokens, group by group (method section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from models.fast_network import FastNetwork
from models.lpd import LPD
from models.sampling import SamplingSettings, guidance_scales, pick
from orders import group_sizes as sizes_of
from orders.locality import locality_aware_orders, published_repulsion
from orders.plan import GenerationPlan
from util import streams
from util.cuda_graphs import CaptureError
from util.errors import compile_failure
from util.host_copy import to_device

SAMPLERS = ("fast", "plain")


@torch.no_grad()
def generate(
    model: LPD,
    labels: torch.Tensor | Sequence[int] | None,
    orders: torch.Tensor | np.ndarray | None,
    group_sizes: Sequence[int] | int,
    *,
    cfg: float = 1.0,
    cfg_schedule: str = "linear",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
    sampler: str = "fast",
) -> torch.Tensor:
    """Generate B images as code indices, in K steps.

    Image i consumes one uniform number per position, drawn from (seed, image_ids[i], position)
    alone, so it does not depend on its batch. Honours an enclosing `torch.autocast`.

    Args:
        model: the network; dropout is off while this runs.
        labels: (B,) int64 in [0, class_num); None generates without a class.
        orders: (B, N) raster positions in generation order; None makes locality-aware ones, as
            `--order lpd` does without a file, of (seed, image_ids[i]).
        group_sizes: K positive sizes that sum to N; or K, for those of the table or rule.
        cfg: guidance strength; 1 runs no unconditional half.
        cfg_schedule: `linear` or `constant`.
        temperature: divides the logits.
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the most likely codes up to this mass; 1 keeps all.
        seed: whole number that names the random streams.
        image_ids: (B,) whole numbers that name the images; `range(B)` if None.
        sampler: `plain` runs the model as it is; `fast` runs the same steps with prepared weights
            and, on a GPU, as one CUDA graph. Where it cannot, the plain one stands in.

    Returns:
        (B, N) int64 on the model's device, raster order.

    Raises:
        ValueError: an argument is out of range, or guidance is asked for without labels.
    """
    settings = SamplingSettings(cfg, cfg_schedule, temperature, top_k, top_p)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: found {sampler!r}, expected one of {SAMPLERS}")
    labels = None if labels is None else torch.as_tensor(labels)
    if isinstance(group_sizes, int):
        group_sizes = sizes_of.group_sizes(model.grid.num_tokens, group_sizes)
    if orders is None:
        orders = _locality_aware(model, labels, group_sizes, seed, image_ids)
    plan = GenerationPlan.build(orders, group_sizes, model.grid.num_tokens)
    ids = np.arange(plan.batch_size) if image_ids is None else np.asarray(image_ids)
    _check_arguments(model, labels, ids, plan, settings)
    device = model.pos_embed.device
    inputs = [
        to_device(plan.orders, device),
        to_device(torch.from_numpy(position_uniforms(seed, ids, plan.num_tokens)), device),
    ]
    if labels is not None:
        inputs.append(to_device(labels.to(torch.int64), device))
    if sampler == "fast":
        tokens = _decode_fast(model, plan, settings, inputs)
        if tokens is not None:
            return tokens
    with eval_mode(model):
        return _decode(model, plan, settings, *inputs)


def _locality_aware(
    model: LPD,
    labels: torch.Tensor | None,
    group_sizes: Sequence[int],
    seed: int,
    image_ids: Sequence[int] | np.ndarray | None,
) -> np.ndarray:
    """Orders (B, N) made on the spot, with the published repulsion."""
    images = labels if image_ids is None else image_ids
    if images is None:
        raise ValueError("orders: found none, and no labels or image_ids, expected one of them")
    return locality_aware_orders(
        len(images),
        group_sizes,
        grid_size=model.grid.side,
        repulsion_threshold=published_repulsion(model.grid.num_tokens, len(group_sizes)),
        seed=seed,
        image_ids=image_ids,
    )


def position_uniforms(seed: int, image_ids: np.ndarray, num_tokens: int) -> np.ndarray:
    """The number that each token consumes: (B, N) float32 in [0, 1), raster order."""
    return streams.uniforms("sampling", seed, image_ids, count=num_tokens)


def _decode_fast(
    model: LPD, plan: GenerationPlan, settings: SamplingSettings, inputs: list[torch.Tensor]
) -> torch.Tensor | None:
    """`_decode` with prepared weights and on a GPU as one graph; None where that is impossible."""
    fast_path = model.fast_path
    if type(model).decode_step is not LPD.decode_step:
        fast_path.use_plain(f"{type(model).__name__} has a decode_step of its own")
        return None
    network = fast_path.network(model)
    if network is None:
        return None
    decode = partial(_decode, network, plan, settings)
    device = model.pos_embed.device.type
    with torch.autocast(device, enabled=False):  # the network casts what it wants cast
        if device != "cuda":
            return decode(*inputs)
        try:
            # Shapes tell guided, labelled and batch sizes apart; the grid belongs to the model.
            return fast_path.graphs.run((plan.group_sizes, settings), decode, *inputs)
        except CaptureError as error:
            fast_path.use_plain(str(error))
            return None
        except RuntimeError as error:
            # A shape that the compiler sees for the first time may fail it.
            reason = compile_failure(error)
            if reason is None:
                raise
            fast_path.use_plain(f"it cannot be compiled: {reason}")
            return None


def _decode(
    network: LPD | FastNetwork,
    plan: GenerationPlan,
    settings: SamplingSettings,
    orders: torch.Tensor,
    uniforms: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """The decoding loop; arguments are checked, tensors on the network's device.

    Of the plan only the steps are used: `orders` takes the place of its orders, because a CUDA
    graph serves any.
    """
    batch_size = len(orders)
    uniforms = uniforms.gather(1, orders)
    scales = guidance_scales(settings, plan.num_tokens, orders.device)
    tokens = torch.empty_like(orders)

    context = network.embed_class(labels, batch_size)
    if settings.guided:
        context = torch.cat([context, network.embed_class(None, batch_size)])
    all_queries = _both_halves(network.embed_queries(orders), settings)
    cache = network.new_cache(len(context))
    for start, stop in plan.steps():
        positions = orders[:, start:stop]
        logits = network.decode_step(context, all_queries[:, start:stop], cache)
        drawn = pick(logits, scales[start:stop], uniforms[:, start:stop], settings)
        tokens.scatter_(1, positions, drawn)
        context = _both_halves(network.embed_tokens(drawn, positions), settings)
    return tokens


def _both_halves(x: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """The same tokens for the conditional and, under guidance, the unconditional half."""
    return torch.cat([x, x]) if settings.guided else x


def _check_arguments(
    model: LPD,
    labels: torch.Tensor | None,
    image_ids: np.ndarray,
    plan: GenerationPlan,
    settings: SamplingSettings,
) -> None:
    if labels is None:
        if settings.guided:
            raise ValueError(f"cfg: found {settings.cfg} without labels, expected 1")
    elif labels.shape != (plan.batch_size,) or labels.is_floating_point():
        raise ValueError(
            f"labels: found {labels.dtype} of shape {tuple(labels.shape)}, expected whole numbers "
            f"({plan.batch_size},)"
        )
    elif labels.min() < 0 or labels.max() >= model.class_num:
        raise ValueError(
            f"labels: found {int(labels.min())}..{int(labels.max())}, "
            f"expected 0..{model.class_num - 1}"
        )
    if image_ids.shape != (plan.batch_size,) or image_ids.dtype.kind not in "iu":
        raise ValueError(
            f"image_ids: found {image_ids.dtype} of shape {image_ids.shape}, expected whole "
            f"numbers ({plan.batch_size},)"
        )


@contextmanager
def eval_mode(model: LPD) -> Iterator[None]:
    """Dropout off inside the block; the model's mode is restored after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
