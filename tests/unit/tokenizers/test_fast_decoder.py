"""The fast decoder shows the plain decoder's images, and never those of older weights."""

import logging
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from models.cuda_graphs import CaptureError
from tokenizers import fast_decoder
from tokenizers.fast_decoder import MAX_GRAPHS, MIN_AGREEMENT, FastDecoder
from tokenizers.vq_model import VQModel
from util.device import plain_float32
from util.images import to_uint8

TOKENS = 16
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make(seed=0):
    torch.manual_seed(seed)
    return VQModel(24, 4, 32, (1, 2), (1, 2), 1, 16).eval().requires_grad_(False)


def codes(device, batch_size=3, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 24, (batch_size, TOKENS), generator=generator).to(device)


@pytest.fixture
def tokenizer(device):
    return make().to(device)


@pytest.fixture
def indices(device):
    return codes(device)


def assert_plain(images, tokenizer, indices):
    """Whether `images` are those of the plain decoder."""
    with plain_float32(indices.device):  # by default a GPU's convolutions round inputs to TF32
        expected = to_uint8(tokenizer.decode_code(indices))
    assert images.dtype == torch.uint8 and images.shape == expected.shape
    assert images.is_contiguous()
    assert expected.float().std() > 10  # not flat images, which would agree whatever happens
    close = (images.int() - expected.int()).abs() <= 1
    assert close.float().mean() >= MIN_AGREEMENT


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_images_are_the_plain_ones_also_under_autocast_in_inference_mode(
    tokenizer, indices, dtype, around
):
    device = indices.device.type
    with torch.inference_mode(around), torch.autocast(device, torch.bfloat16, enabled=around):
        decoder = FastDecoder(tokenizer, TOKENS, dtype=dtype)
        images = decoder(indices)
    usual = torch.float16 if device == "cuda" else torch.float32
    assert decoder.dtype == (dtype or usual)
    assert decoder.agreement >= MIN_AGREEMENT
    for batch in (indices, indices[:1]):
        assert_plain(decoder(batch), tokenizer, batch)
    assert torch.equal(decoder(indices), images)


def test_the_copy_is_channels_last_in_its_precision(tokenizer, indices):
    copy = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)._copy
    assert {p.dtype for p in copy.state_dict().values()} == {torch.float16}
    seen = [p for p in copy.parameters() if p.ndim == 4]
    for module in copy.decoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    copy(indices)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_the_agreement_is_measured_and_decides(tokenizer, indices, caplog, monkeypatch):
    with caplog.at_level(logging.INFO):
        decoder = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)
        monkeypatch.setattr(fast_decoder, "MIN_AGREEMENT", 1.1)
        rejected = FastDecoder(tokenizer, TOKENS, dtype=torch.bfloat16)
    accepted, other = caplog.messages
    assert f"float16 keeps {100 * decoder.agreement:.3f} % of grey levels" in accepted
    assert decoder._measure() == decoder.agreement  # the probe is always the same
    with torch.no_grad():
        decoder._copy.decoder.conv_out.bias += 2 / 127.5  # two grey levels brighter
    assert decoder._measure() < 0.5
    assert other.startswith("VQ decoder: bfloat16 keeps") and "rejected" in other
    assert (rejected.dtype, rejected.agreement) == (torch.float32, 1)
    exact = FastDecoder(tokenizer, TOKENS, dtype=torch.float32)
    assert torch.equal(rejected(indices), exact(indices))


def load(tokenizer, assign=False):
    other = make(seed=1).to(tokenizer.quantize.embedding.weight.device)
    tokenizer.load_state_dict(other.state_dict(), assign=assign)


def replace_twice(tokenizer):
    """An allocator likes to hand out memory just freed: the copy keeps that from happening."""
    weight = tokenizer.decoder.conv_out.weight
    weight.data = weight.clone()
    weight.data = weight.clone().neg_()


CHANGES = [
    lambda tokenizer: tokenizer.quantize.embedding.weight.neg_(),
    lambda tokenizer: tokenizer.post_quant_conv.bias.neg_(),
    lambda tokenizer: tokenizer.decoder.conv_out.weight.neg_(),
    *(load, partial(load, assign=True), replace_twice),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen_and_the_same_not_copied(tokenizer, indices, change, monkeypatch):
    decoder = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_build", None)
        before = decoder(indices)
    change(tokenizer)
    after = decoder(indices)
    assert not torch.equal(before, after)
    assert_plain(after, tokenizer, indices)
    assert decoder.dtype == torch.float16


def test_the_precision_is_judged_again_also_after_a_failure(tokenizer, indices, monkeypatch):
    def fail():
        raise torch.OutOfMemoryError("full")

    decoder = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)
    tokenizer.decoder.conv_in.weight *= 1e7  # beyond float16, nothing to the norms of float32
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_measure", fail)
        with pytest.raises(torch.OutOfMemoryError):
            decoder(indices)
    assert_plain(decoder(indices), tokenizer, indices)
    assert decoder.dtype == torch.float32


def test_weights_that_count_no_changes_are_copied_at_every_call(device, indices):
    with torch.inference_mode():
        tokenizer = make().to(device)
        decoder = FastDecoder(tokenizer, TOKENS)
        before = decoder(indices)
        tokenizer.decoder.conv_out.weight.neg_()
    after = decoder(indices)
    assert not torch.equal(before, after)
    assert_plain(after, tokenizer, indices)


def test_large_batches_are_decoded_in_parts(tokenizer, indices, monkeypatch):
    monkeypatch.setattr(fast_decoder, "MAX_PIXELS", 2 * 8**2)
    decoder = FastDecoder(tokenizer, TOKENS)
    decoder._graphs = None
    sizes = []
    decoder._copy.register_forward_pre_hook(lambda copy, inputs: sizes.append(len(inputs[0])))
    assert_plain(decoder(indices), tokenizer, indices)
    assert sizes == [2, 1]


def test_without_memory_or_graphs_it_decodes(caplog):
    decoder, indices, graphs = FastDecoder(make(), TOKENS), codes("cpu"), Mock()
    expected = decoder(indices)
    decoder._graphs = graphs
    graphs.run.side_effect = torch.OutOfMemoryError("full")
    for calls in (1, 2):  # the next call may find room for a graph again
        assert torch.equal(decoder(indices), expected)
        assert graphs.clear.call_count == graphs.run.call_count == calls
    graphs.run.side_effect = CaptureError("no graph today")
    for _ in range(2):
        assert torch.equal(decoder(indices), expected)
    assert graphs.run.call_count == 3
    (line,) = caplog.messages
    assert line.endswith("decoding without CUDA graphs, because no graph today")


def test_other_shapes_are_refused():
    decoder = FastDecoder(make(), TOKENS)
    for shape in ((TOKENS,), (2, TOKENS + 1), (1, 2, TOKENS)):
        with pytest.raises(ValueError, match=r"expected \(B, 16\)"):
            decoder(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="square"):
        FastDecoder(make(), 15)


@needs_gpu
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_graphs_compute_what_their_function_does_and_are_bounded(dtype):
    decoder = FastDecoder(make().to("cuda"), TOKENS, dtype=dtype)
    sizes = range(1, MAX_GRAPHS + 3)
    batches = [codes("cuda", size, seed) for seed in range(3) for size in sizes]
    images = [decoder(indices) for indices in batches]
    assert len(decoder._graphs) == MAX_GRAPHS
    # All at the end: no replay overwrote what an earlier one had returned.
    for one, indices in zip(images, batches, strict=True):
        with plain_float32(indices.device):
            assert torch.equal(one, decoder._copy(indices))


@needs_gpu
def test_memory_of_graphs_is_given_back():
    decoder = FastDecoder(make().to("cuda"), TOKENS)
    decoder(codes("cuda", 2))
    before = torch.cuda.memory_allocated()
    for size in (8, 4, 2, 1):
        decoder(codes("cuda", size))
    decoder._graphs.clear()
    decoder(codes("cuda", 2))
    assert torch.cuda.memory_allocated() <= before + 2**20


@needs_gpu
def test_a_tokenizer_that_moves_is_followed():
    tokenizer, indices = make().to("cuda"), codes("cuda", 2)
    decoder = FastDecoder(tokenizer, TOKENS)
    before = decoder(indices)
    tokenizer.to("cpu")
    assert_plain(decoder(indices.cpu()), tokenizer, indices.cpu())
    tokenizer.to("cuda")
    assert torch.equal(decoder(indices), before)
