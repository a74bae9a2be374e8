"""A generation from labels to images, as a whole and in parts, beside its least time."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.cuda_graphs import GraphCache
from models.decoding import generate
from models.fast import FastPath, NetworkWeights
from models.lpd import LPD, MODELS
from models.sampling import SamplingSettings, guidance_scales, pick
from orders.group_sizes import group_sizes
from orders.sources import locality_aware
from performance import timing
from performance.cost import Rates, Work, decoding_work, step_rows, tokenizer_cost
from performance.timing import Calls, Effort, Record
from tokenizers.fast_decoder import FastDecoder
from tokenizers.vq_model import VQModel
from util.images import to_uint8


class Row(NamedTuple):
    """One row of the published table; the guidance schedule is linear."""

    model: str  # a key of `MODELS`
    image_size: int  # pixels
    steps: int
    cfg: float


def random_model(row: Row, tokenizer: VQModel, dtype: torch.dtype, device: torch.device) -> LPD:
    """Make the network of a row for a tokenizer, its weights rounded as an evaluation does."""
    sizes = dict(vqgan_stride=tokenizer.stride, vqgan_vocab_size=tokenizer.codebook_size)
    build = MODELS[row.model]
    model = timing.random_weights(lambda: build(img_size=row.image_size, **sizes), device)
    return model if dtype == torch.float32 else model.round_products(dtype)


class Case:
    """A model, a type and a number of images."""

    def __init__(
        self, row: Row, model: LPD, tokenizer: VQModel, dtype: torch.dtype, batch_size: int
    ) -> None:
        FastPath.forget(model)  # without what other cases prepared and captured
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.device, self.batch_size = model.pos_embed.device, batch_size
        self.settings = SamplingSettings(cfg=row.cfg)
        self.sequences = batch_size * (2 if self.settings.guided else 1)
        self.sizes = group_sizes(model.grid.num_tokens, row.steps)
        self.orders = locality_aware(model.grid, seed=0)(np.arange(batch_size), self.sizes)
        self.labels = torch.arange(batch_size) % model.class_num

    def autocast(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def generate(self, sampler: str) -> Tensor:
        """(B, N) int64 codes on the device."""
        inputs = (self.model, self.labels, self.orders, self.sizes, self.settings)
        with self.autocast():
            return generate(*inputs, sampler=sampler)

    @cached_property
    def tokens(self) -> Tensor:
        """Those of the fast sampler's first call."""
        return self.generate("fast")

    @cached_property
    def decoder(self) -> FastDecoder:
        return FastDecoder(self.tokenizer, self.model.grid.num_tokens)

    def fast(self) -> Tensor:
        """(B, S, S, 3) uint8 images on the device."""
        return self.decoder(self.generate("fast"))

    @torch.no_grad()
    def plain(self) -> Tensor:
        """As `fast`, by the code that is there to be read."""
        some = self.generate("plain").split(16)  # as many as the fast decoder takes at once
        return torch.cat([to_uint8(self.tokenizer.decode_code(codes)) for codes in some])

    @cached_property
    def packed(self) -> bool:
        """Whether the fast sampler multiplies with packed weights."""
        with self.autocast():
            served = FastPath.of(self.model).network(self.model) is not None
        return served and self.device.type == "cpu"

    def head_and_drawing(self) -> Callable[[], Tensor]:
        """Return what follows the last block in all steps, for random rows; on a GPU a graph."""
        weights = NetworkWeights.prepare(self.model, self.dtype, self.packed)
        norm, head = weights.norm, weights.head
        scales = guidance_scales(self.settings, sum(self.sizes), self.device).split(self.sizes)

        def draw(rows: Tensor, uniforms: Tensor) -> Tensor:
            codes = []
            for scale, uniform in zip(scales, uniforms.split(self.sizes, dim=1), strict=True):
                x = rows[:, : len(scale)].flatten(0, 1)
                logits = head(norm(x)).unflatten(0, (self.sequences, -1))
                codes.append(pick(logits, scale, uniform, self.settings))
            return torch.cat(codes, dim=1)

        shape = (self.sequences, max(self.sizes), self.model.pos_embed.shape[-1])
        rows = torch.randn(shape, device=self.device)
        uniforms = torch.rand(self.batch_size, sum(self.sizes), device=self.device)
        if self.device.type == "cpu":
            return lambda: draw(rows, uniforms)
        graphs = GraphCache(1)
        return lambda: graphs.run("head and drawing", draw, rows, uniforms)

    def products(self, packed: bool) -> Callable[[], None]:
        """Return what makes all matrix products of a generation, and nothing between them."""
        steps = np.array(step_rows(self.sizes)) * self.sequences
        most = int(steps.sum(axis=1).max())
        multiply = timing.bare_products(self.model, self.dtype, most, packed)

        def generation() -> None:
            for context, queries in steps:
                multiply(context + queries, queries)

        return generation

    def floor(self, rates: Mapping[torch.dtype, Rates]) -> float:
        """Return the seconds of `FORMULA`."""
        steps = decoding_work(self.model, self.sizes, self.sequences, self.dtype.itemsize)
        dtype = self.decoder.dtype
        one = tokenizer_cost(self.tokenizer, sum(self.sizes), dtype.itemsize)["decoder"]
        vq = Work(one.bytes, self.batch_size * one.operations)  # weights are read once for all
        return sum(step.seconds(rates[self.dtype]) for step in steps) + vq.seconds(rates[dtype])


@torch.no_grad()
def measure(case: Case, rates: Mapping[torch.dtype, Rates], effort: Effort) -> Record:
    """Warm a case up, and time it and its parts in turn; plain, if only once, is not warm."""
    calls: Calls = {"vq": lambda: case.decoder(case.tokens)}
    record = timing.warm_up(calls["vq"], case.device)
    calls["head"] = case.head_and_drawing()
    if case.device.type == "cpu":
        calls["products"] = case.products(packed=False)
        if case.packed:
            calls["packed_products"] = case.products(packed=True)
    if effort.plain_rounds > 0:
        calls["plain"] = case.plain
    for name, call in calls.items():
        if name != "plain" or effort.plain_rounds > 1:
            call()
    record |= timing.compare({"fast": case.fast, **calls}, case.batch_size, effort)
    generation_s = record["fast_s"] - record["vq_s"]
    record["transformer_s"] = generation_s - record["head_s"]
    for name in calls.keys() & {"products", "packed_products"}:
        record[f"{name}_ratio"] = generation_s / record[f"{name}_s"]
    floor_s = case.floor(rates)
    return record | {"floor_s": floor_s, "floor_share": floor_s / record["fast_s"]}
