"""A network small enough for many forward passes in a test."""

import itertools
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.lpd import LPD

SIDE = 4
NUM_TOKENS = SIDE * SIDE
VOCAB = 23


def small_lpd(seed: int = 0, **options: object) -> LPD:
    """16 positions, 23 codes, 5 classes; weights large enough that logits differ clearly."""
    torch.manual_seed(seed)
    size = dict(img_size=16, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
    codes = dict(vqgan_stride=4, vqgan_vocab_size=VOCAB, class_num=5, proj_dropout=0.0)
    model = LPD(**{**size, **codes, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_split(generator: torch.Generator, total: int = NUM_TOKENS) -> list[int]:
    """Random positive sizes that sum to `total`."""
    steps = int(torch.randint(1, total + 1, (), generator=generator))
    cuts = torch.randperm(total - 1, generator=generator)[: steps - 1].add(1).sort().values
    edges = [0, *cuts.tolist(), total]
    return [stop - start for start, stop in itertools.pairwise(edges)]


def random_batch(
    seed: int | torch.Generator = 0, batch_size: int = 3, num_tokens: int = NUM_TOKENS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (B, N), labels (B,) and orders (B, N)."""
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    tokens = torch.randint(VOCAB, (batch_size, num_tokens), generator=generator)
    labels = torch.randint(5, (batch_size,), generator=generator)
    orders = torch.rand(batch_size, num_tokens, generator=generator).argsort(dim=1)
    return tokens, labels, orders


class Counter:
    """A backend of `torch.compile` that runs what it is given and counts it."""

    graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


class ProductDtypes(TorchDispatchMode):
    """Records, in order and without repetitions, in which dtypes linear layers multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.dtype] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if str(function.overloadpacket) in ("aten.addmm", "aten.mm", "mkldnn._linear_pointwise"):
            dtype = args[1].dtype  # a matrix in all three
            if self.found[-1:] != [dtype]:
                self.found.append(dtype)
        return function(*args, **kwargs or {})
