"""Captured decoding on a GPU: the same images as without a graph, never those of older weights."""

import pytest
import torch

from tokenizers.fast_decoder import MAX_GRAPHS, MIN_AGREEMENT, FastDecoder
from tokenizers.vq_model import VQModel
from util.images import to_uint8

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TOKENS = 64
SMALL = {
    "codebook_size": 64,
    "codebook_embed_dim": 4,
    "ch": 64,
    "encoder_ch_mult": (1, 1, 2),
    "decoder_ch_mult": (1, 1, 2),
    "num_res_blocks": 1,
    "z_channels": 32,
}


def make(seed=0):
    torch.manual_seed(seed)
    return VQModel(**SMALL).eval().requires_grad_(False).to("cuda")


@pytest.fixture
def tokenizer():
    return make()


def codes(batch_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 64, (batch_size, TOKENS), generator=generator).to("cuda")


def without_tf32(decode, indices):
    """As `FastDecoder` decodes: PyTorch's default rounds a convolution's inputs to TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return decode(indices)


def assert_agrees(found, tokenizer, indices):
    expected = to_uint8(without_tf32(tokenizer.decode_code, indices))
    close = (found.int() - expected.int()).abs() <= 1
    assert close.float().mean() >= MIN_AGREEMENT


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_graph_computes_what_its_function_does(tokenizer, dtype):
    decoder = FastDecoder(tokenizer, TOKENS, dtype=dtype)
    assert decoder.dtype == (dtype or torch.float16)
    for seed in range(3):
        indices = codes(4, seed)
        found = decoder(indices)
        assert torch.equal(found, without_tf32(decoder._half, indices))
        if dtype is None:
            assert_agrees(found, tokenizer, indices)
    assert len(decoder._graphs) == 1


def test_alternating_batch_sizes(tokenizer):
    decoder = FastDecoder(tokenizer, TOKENS)
    batches = {(size, seed): codes(size, seed) for seed in range(3) for size in (1, 4, 2)}
    found = {name: decoder(indices) for name, indices in batches.items()}
    assert len(decoder._graphs) == 3
    # All at the end: no replay overwrote what an earlier one had returned.
    for name, indices in batches.items():
        assert torch.equal(found[name], without_tf32(decoder._half, indices))


def test_the_number_of_graphs_is_bounded(tokenizer):
    decoder = FastDecoder(tokenizer, TOKENS)
    for size in range(1, MAX_GRAPHS + 3):
        indices = codes(size)
        assert torch.equal(decoder(indices), without_tf32(decoder._half, indices))
    assert len(decoder._graphs) == MAX_GRAPHS
    indices = codes(1)  # captured again
    assert torch.equal(decoder(indices), without_tf32(decoder._half, indices))


def test_memory_is_given_back(tokenizer):
    decoder = FastDecoder(tokenizer, TOKENS)
    decoder(codes(2))
    before = torch.cuda.memory_allocated()
    for size in (8, 4, 2, 1):
        decoder(codes(size))
    decoder._graphs.clear()
    decoder(codes(2))
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.parametrize("assign", [False, True])
def test_changed_weights_are_seen(tokenizer, assign):
    decoder = FastDecoder(tokenizer, TOKENS)
    indices = codes(2)
    before = decoder(indices)
    tokenizer.decoder.conv_out.weight.neg_()
    negated = decoder(indices)
    assert not torch.equal(before, negated)
    assert_agrees(negated, tokenizer, indices)
    tokenizer.load_state_dict(make(seed=1).state_dict(), assign=assign)
    loaded = decoder(indices)
    assert not torch.equal(negated, loaded)
    assert_agrees(loaded, tokenizer, indices)
    assert len(decoder._graphs) == 1  # the same graph, with new weights


def test_a_tokenizer_that_moves_is_followed(tokenizer):
    decoder = FastDecoder(tokenizer, TOKENS)
    indices = codes(2)
    before = decoder(indices)
    tokenizer.to("cpu")
    on_cpu = decoder(indices.cpu())
    assert on_cpu.device.type == "cpu"
    tokenizer.to("cuda")
    assert torch.equal(decoder(indices), before)
    assert ((on_cpu.int() - before.cpu().int()).abs() <= 1).float().mean() >= MIN_AGREEMENT


def test_inference_mode_and_autocast_around(tokenizer):
    decoder = FastDecoder(tokenizer, TOKENS)
    indices = codes(2)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        first = decoder(indices)
    assert torch.equal(decoder(indices), first)
    assert torch.equal(without_tf32(decoder._half, indices), first)
