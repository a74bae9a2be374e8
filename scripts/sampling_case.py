"""One line of the sampling benchmark: a model, a type and a number of images, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoding import generate
from models.fast_network import Linear, NetworkWeights, Norm
from models.fast_path import FastPath
from models.lpd import LPD, MODELS
from models.sampling import SamplingSettings, guidance_scales, pick
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders, published_repulsion
from tokenizers.fast_decoder import FastDecoder
from tokenizers.vq_model import VQModel
from util.cuda_graphs import GraphCache
from util.data.images import to_uint8
from util.geometry import TokenGrid
from util.performance.benchmark import random_weights
from util.performance.model_cost import generation_of, tokenizer_cost
from util.performance.roofline import Generation, Work


@dataclass(frozen=True)
class Row:
    """One row of the published table; the guidance schedule is linear.

    Attributes:
        model: a key of `MODELS`.
        image_size: side of the image, pixels.
        steps: of the generation, K.
        cfg: guidance strength.
    """

    model: str
    image_size: int
    steps: int
    cfg: float

    @property
    def name(self) -> str:
        """As `--rows` takes it."""
        return f"{self.model}_{self.image_size}_{self.steps}"


def random_model(row: Row, tokenizer: VQModel, device: torch.device) -> LPD:
    """The network of a row for a tokenizer."""
    grid = TokenGrid(row.image_size, tokenizer.stride, tokenizer.codebook_size)

    def build() -> LPD:
        sizes = {"vqgan_stride": grid.stride, "vqgan_vocab_size": grid.vocab_size}
        return MODELS[row.model](img_size=grid.image_size, **sizes)

    return random_weights(build, device)


class Case:
    """One line of the table: a model, a type and a number of images.

    Attributes:
        generation: the sizes of its decoding.
        tokens: made by the fast sampler, (B, N) int64; None until `warm_up`.
        decoder: the fast VQ decoder; None until `warm_up`.
    """

    def __init__(
        self, row: Row, model: LPD, tokenizer: VQModel, dtype: torch.dtype, batch_size: int
    ) -> None:
        model.fast_path = FastPath()  # without what other cases prepared and captured
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.device, self.batch_size = model.pos_embed.device, batch_size
        self.settings = SamplingSettings(cfg=row.cfg)
        num_tokens = model.grid.num_tokens
        self.sizes = group_sizes(num_tokens, row.steps)
        repulsion = published_repulsion(num_tokens, row.steps)
        self.orders = locality_aware_orders(
            batch_size, self.sizes, model.grid.side, repulsion_threshold=repulsion
        )
        self.labels = torch.arange(batch_size) % model.class_num
        sequences = batch_size * (2 if self.settings.guided else 1)
        self.generation = generation_of(model, self.sizes, sequences, dtype.itemsize)
        self.tokens: Tensor | None = None
        self.decoder: FastDecoder | None = None

    def autocast(self) -> torch.autocast:
        """Gives the network's matrix products their type."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def generate(self, sampler: str) -> Tensor:
        """(B, N) int64 codes on the device."""
        inputs = (self.model, self.labels, self.orders, self.sizes)
        with self.autocast():
            return generate(*inputs, **vars(self.settings), sampler=sampler)

    def fast(self) -> Tensor:
        """(B, S, S, 3) uint8 images on the device."""
        return self.decoder(self.generate("fast"))

    @torch.no_grad()
    def plain(self) -> Tensor:
        """As `fast`, by the code that is there to be read."""
        return to_uint8(self.tokenizer.decode_code(self.generate("plain")))

    def uses_packed_weights(self) -> bool:
        """Whether the fast sampler serves this case with weights laid out for a CPU."""
        with self.autocast():
            served = self.model.fast_path.network(self.model) is not None
        return served and self.device.type == "cpu"


def decoder_work(case: Case) -> Work:
    """What the VQ decoder of a warm case has to do; its weights are read once for all images."""
    number_bytes = case.decoder.dtype.itemsize
    work = tokenizer_cost(case.tokenizer, sum(case.sizes), number_bytes)["decoder"]
    return Work(work.bytes, case.batch_size * work.operations)


def head_and_drawing(case: Case, packed: bool) -> Callable[[], Tensor]:
    """What follows the last block at every step, on random rows: norm, head, guidance, drawing.

    On a GPU it is one CUDA graph, as it is part of one in the fast sampler.
    """
    norm = Norm.prepare(case.model.norm)
    head = Linear.prepare(case.model.head, case.dtype, packed)
    scales = guidance_scales(case.settings, sum(case.sizes), case.device)

    def draw_all(x: Tensor, uniforms: Tensor) -> Tensor:
        drawn, start = [], 0
        for size in case.sizes:
            group = slice(start, start + size)
            logits = head(norm(x[:, :size].flatten(0, 1))).unflatten(0, (len(x), size))
            drawn.append(pick(logits, scales[group], uniforms[:, group], case.settings))
            start += size
        return torch.cat(drawn, dim=1)

    shape = (case.generation.sequences, max(case.sizes), case.generation.width)
    x = torch.randn(shape, device=case.device)
    uniforms = torch.rand(case.batch_size, sum(case.sizes), device=case.device)
    if case.device.type == "cpu":
        return lambda: draw_all(x, uniforms)
    graphs = GraphCache(1)
    return lambda: graphs.run("head and drawing", draw_all, x, uniforms)


def bare_products(weights: NetworkWeights, generation: Generation) -> Callable[[], None]:
    """All matrix products of a generation by its weights, and nothing between them."""
    most = generation.sequences * max(map(sum, generation.step_rows()))
    x, hidden = (torch.randn(most, width * generation.width).to(weights.dtype) for width in (1, 4))

    def multiply() -> None:
        for context, queries in generation.step_rows():
            rows = generation.sequences * (context + queries)
            for block in weights.blocks:
                for layer in (block.qkv, block.proj, block.fc1):
                    layer(x[:rows])
                block.fc2(hidden[:rows])
            weights.head(x[: generation.sequences * queries])

    return multiply
