"""Nothing breaks, and float32 stays float32, whatever a user tells `torch.backends`."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import reduce
from pathlib import Path

import pytest
import torch

from evaluation.features import extract
from models.cuda_graphs import _settings
from models.decoding import SAMPLERS, generate
from orders.locality import random_orders
from tests.unit.evaluation.scoring_files import digits_extractor, random_images
from tests.unit.models.small import small_lpd
from tests.unit.tokenizers.test_fast_decoder import TOKENS, make
from tokenizers.encoding import PRECISIONS, encode
from tokenizers.fast_decoder import FastDecoder
from util.device import plain_float32

# Attributes of `torch`, and what a user sets them to, or calls them with.
SETTERS = [
    *(("backends.fp32_precision", value) for value in ("tf32", "ieee", "bf16")),
    ("backends.mkldnn.fp32_precision", "bf16"),
    ("backends.mkldnn.matmul.fp32_precision", "bf16"),
    ("backends.mkldnn.conv.fp32_precision", "bf16"),
    *(("backends.cudnn.fp32_precision", value) for value in ("ieee", "tf32")),
    ("backends.cudnn.conv.fp32_precision", "ieee"),
    ("backends.cudnn.rnn.fp32_precision", "ieee"),
    ("backends.cuda.matmul.fp32_precision", "tf32"),
    ("backends.cuda.matmul.allow_tf32", True),
    ("backends.cudnn.allow_tf32", False),
    ("backends.mkldnn.allow_tf32", True),
    *(("set_float32_matmul_precision", value) for value in ("high", "medium")),
]


@pytest.fixture(scope="module")
def each_in_a_process() -> Iterator[ProcessPoolExecutor]:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=server, max_tasks_per_child=1) as executor:
        yield executor


def in_float32(folder: Path) -> list[torch.Tensor]:
    """What is promised to be computed in float32."""
    torch.set_num_threads(1)
    tokenizer, images = make(), torch.from_numpy(random_images(4))
    codes = torch.arange(2 * TOKENS).view(2, TOKENS) % tokenizer.codebook_size
    features = extract(digits_extractor(folder / "digits.pt"), images)
    pictures = FastDecoder(tokenizer, TOKENS)(codes)
    latents = []
    tokenizer.quant_conv.register_forward_hook(lambda *found: latents.append(found[-1]))
    tokens = encode(tokenizer, images.permute(0, 3, 1, 2))
    return [features.pool, features.logits, pictures, tokens, *latents]


def settings() -> dict[str, object]:
    """All of them, also the older ones, which some cannot be read with."""
    found = {}
    for name, _ in SETTERS:
        with suppress(RuntimeError):
            value = reduce(getattr, name.replace("set_", "get_").split("."), torch)
            found[name] = value() if callable(value) else value
    return found


def under(name: str, value: object, folder: Path) -> None:
    expected = in_float32(folder)
    *owner, attribute = name.split(".")
    target = reduce(getattr, owner, torch)
    if callable(getattr(target, attribute)):
        getattr(target, attribute)(value)
    else:
        setattr(target, attribute, value)
    before = settings()
    for number, (found, wanted) in enumerate(zip(in_float32(folder), expected, strict=True)):
        assert torch.equal(found, wanted), number
    for precision in PRECISIONS:
        encode(make(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), precision)
    for sampler in SAMPLERS:
        tokens = generate(small_lpd(), [1, 2], random_orders(2, 16), [4, 12], sampler=sampler)
        assert tokens.min() >= 0
    outside = _settings()
    with plain_float32(torch.device("cpu")):
        assert _settings()[1:3] == (False, False)
    assert _settings() == outside
    assert settings() == before


@pytest.mark.parametrize(("name", "value"), SETTERS)
def test_float32_is_float32(
    name: str, value: object, each_in_a_process: ProcessPoolExecutor, tmp_path: Path
) -> None:
    each_in_a_process.submit(under, name, value, tmp_path).result()
