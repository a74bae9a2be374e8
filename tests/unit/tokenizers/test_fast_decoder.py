"""The fast decoder shows the plain decoder's images, and never those of older weights."""

import logging

import pytest
import torch
import torch.nn.functional as F

from models.cuda_graphs import CaptureError
from tokenizers import fast_decoder
from tokenizers.fast_decoder import MIN_AGREEMENT, FastDecoder
from tokenizers.vq_model import VQModel
from util.images import to_uint8

TOKENS = 16
SMALL = {
    "codebook_size": 24,
    "codebook_embed_dim": 4,
    "ch": 32,
    "encoder_ch_mult": (1, 2),
    "decoder_ch_mult": (1, 2),
    "num_res_blocks": 1,
    "z_channels": 16,
}


def make(seed=0):
    torch.manual_seed(seed)
    return VQModel(**SMALL).eval().requires_grad_(False)


@pytest.fixture
def tokenizer():
    return make()


@pytest.fixture
def indices():
    return torch.randint(0, 24, (3, TOKENS), generator=torch.Generator().manual_seed(5))


def plain(tokenizer, indices):
    return to_uint8(tokenizer.decode_code(indices))


def assert_same_images(found, expected):
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert expected.float().std() > 10  # not flat images, which would agree whatever happens
    close = (found.int() - expected.int()).abs() <= 1
    assert close.float().mean() >= MIN_AGREEMENT


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_images_are_the_plain_ones(tokenizer, indices, dtype):
    decoder = FastDecoder(tokenizer, TOKENS, dtype=dtype)
    assert decoder.dtype == (dtype or torch.float32)
    assert decoder.agreement >= MIN_AGREEMENT
    for batch in (indices, indices[:1]):
        assert_same_images(decoder(batch), plain(tokenizer, batch))


def test_float32_is_nearly_exact(tokenizer, indices):
    found, expected = FastDecoder(tokenizer, TOKENS)(indices), plain(tokenizer, indices)
    assert (found == expected).float().mean() > 0.999


def test_the_copy_is_channels_last_in_its_precision(tokenizer, indices):
    half = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)._half
    assert {p.dtype for p in half.state_dict().values()} == {torch.float16}
    seen = [p for p in half.parameters() if p.ndim == 4]
    for module in half.decoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    half(indices)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_a_rejected_precision_gives_way_to_float32(tokenizer, indices, caplog, monkeypatch):
    monkeypatch.setattr(fast_decoder, "MIN_AGREEMENT", 1.1)
    with caplog.at_level(logging.INFO):
        decoder = FastDecoder(tokenizer, TOKENS, dtype=torch.bfloat16)
    assert decoder.dtype == torch.float32
    assert decoder.agreement == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("VQ decoder: bfloat16 keeps")
    assert "rejected" in line
    assert torch.equal(decoder(indices), FastDecoder(tokenizer, TOKENS)(indices))


def test_an_overflow_is_rejected(tokenizer):
    tokenizer.decoder.conv_in.weight *= 1e7  # beyond float16, nothing to the norms of float32
    assert FastDecoder(tokenizer, TOKENS, dtype=torch.float16).dtype == torch.float32


def test_the_agreement_is_measured_and_logged(tokenizer, caplog):
    with caplog.at_level(logging.INFO):
        decoder = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"float16 keeps {100 * decoder.agreement:.3f} % of grey levels" in line
    assert decoder._measure(decoder._half) == decoder.agreement  # the probe is always the same
    with torch.no_grad():
        decoder._half.decoder.conv_out.bias += 2 / 127.5  # two grey levels brighter
    assert decoder._measure(decoder._half) < 0.5


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize(
    "name", ["quantize.embedding.weight", "post_quant_conv.bias", "decoder.conv_out.weight"]
)
def test_a_weight_changed_in_place_is_seen(tokenizer, indices, dtype, name):
    decoder = FastDecoder(tokenizer, TOKENS, dtype=dtype)
    before = decoder(indices)
    addresses = [p.data_ptr() for p in decoder._half.state_dict().values()]
    tokenizer.get_parameter(name).neg_()
    after = decoder(indices)
    assert not torch.equal(before, after)
    assert_same_images(after, plain(tokenizer, indices))
    # A captured graph reads the same memory.
    assert [p.data_ptr() for p in decoder._half.state_dict().values()] == addresses


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_seen(tokenizer, indices, assign):
    decoder = FastDecoder(tokenizer, TOKENS)
    before = decoder(indices)
    tokenizer.load_state_dict(make(seed=1).state_dict(), assign=assign)
    after = decoder(indices)
    assert not torch.equal(before, after)
    assert_same_images(after, plain(tokenizer, indices))


def test_weights_replaced_at_the_same_address_are_seen(tokenizer, indices):
    """An allocator likes to hand out memory just freed: the copy keeps that from happening."""
    decoder = FastDecoder(tokenizer, TOKENS)
    decoder(indices)
    weight = tokenizer.decoder.conv_out.weight
    weight.data = weight.clone()
    weight.data = weight.clone().neg_()
    assert_same_images(decoder(indices), plain(tokenizer, indices))


def test_unchanged_weights_are_not_copied(tokenizer, indices, monkeypatch):
    decoder = FastDecoder(tokenizer, TOKENS)
    monkeypatch.setattr(decoder._half, "load", None)
    decoder(indices)


def test_the_precision_is_judged_again_with_new_weights(tokenizer, indices):
    decoder = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)
    decoder.agreement = 0.0
    tokenizer.load_state_dict(make(seed=1).state_dict())
    decoder(indices)
    assert decoder.dtype == torch.float16
    assert decoder.agreement >= MIN_AGREEMENT
    tokenizer.decoder.conv_in.weight *= 1e7
    assert_same_images(decoder(indices), plain(tokenizer, indices))
    assert decoder.dtype == torch.float32


def test_a_failed_change_of_copies_is_tried_again(tokenizer, indices, monkeypatch):
    decoder = FastDecoder(tokenizer, TOKENS, dtype=torch.float16)

    def fail(*args):
        raise torch.OutOfMemoryError("full")

    tokenizer.decoder.conv_out.weight.neg_()
    for step in ("_measure", "_copy"):
        with monkeypatch.context() as patch:
            patch.setattr(decoder, step, fail)
            patch.setattr(fast_decoder, "MIN_AGREEMENT", 1.1)  # the next copy is called for
            with pytest.raises(torch.OutOfMemoryError):
                decoder(indices)
    assert_same_images(decoder(indices), plain(tokenizer, indices))
    assert decoder.dtype == torch.float16


def test_weights_that_count_no_changes_are_copied_at_every_call(indices):
    with torch.inference_mode():
        tokenizer = make()
        decoder = FastDecoder(tokenizer, TOKENS)
        before = decoder(indices)
        tokenizer.decoder.conv_out.weight.neg_()
    after = decoder(indices)  # outside inference mode the copy must be writable as well
    assert not torch.equal(before, after)
    assert_same_images(after, plain(tokenizer, indices))


def test_large_batches_are_decoded_in_parts(tokenizer, indices, monkeypatch):
    whole = FastDecoder(tokenizer, TOKENS)(indices)
    monkeypatch.setattr(fast_decoder, "MAX_PIXELS", 2 * 8**2)
    decoder = FastDecoder(tokenizer, TOKENS)
    sizes = []
    decoder._half.register_forward_pre_hook(lambda half, inputs: sizes.append(len(inputs[0])))
    assert (decoder(indices).int() - whole.int()).abs().max() <= 1
    assert sizes == [2, 1]


def test_autocast_around_changes_nothing(tokenizer, indices):
    expected = FastDecoder(tokenizer, TOKENS)(indices)
    with torch.autocast("cpu", torch.bfloat16):
        decoder = FastDecoder(tokenizer, TOKENS)
        assert torch.equal(decoder(indices), expected)


class Graphs:
    """Stands for a cache of graphs: fails with `error`, or runs."""

    def __init__(self, error=None):
        self.error, self.keys, self.cleared = error, [], 0

    def run(self, key, function, *inputs):
        self.keys.append(key)
        if self.error:
            raise self.error
        return function(*inputs)

    def clear(self):
        self.cleared += 1


def test_every_batch_size_is_a_graph(tokenizer, indices):
    decoder = FastDecoder(tokenizer, TOKENS)
    expected = decoder(indices)
    decoder._graphs = graphs = Graphs()
    assert torch.equal(decoder(indices), expected)
    decoder(indices[:1])
    assert graphs.keys == ["VQ decoder, batch of 3", "VQ decoder, batch of 1"]


def test_without_memory_it_frees_the_graphs_and_decodes(tokenizer, indices):
    decoder = FastDecoder(tokenizer, TOKENS)
    expected = decoder(indices)
    decoder._graphs = graphs = Graphs(torch.OutOfMemoryError("full"))
    for calls in (1, 2):  # the next call may find room for a graph again
        assert torch.equal(decoder(indices), expected)
        assert graphs.cleared == len(graphs.keys) == calls


def test_without_graphs_it_says_so_once_and_decodes(tokenizer, indices, caplog):
    decoder = FastDecoder(tokenizer, TOKENS)
    expected = decoder(indices)
    decoder._graphs = graphs = Graphs(CaptureError("no graph today"))
    for _ in range(2):
        assert torch.equal(decoder(indices), expected)
    assert len(graphs.keys) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("decoding without CUDA graphs, because no graph today")


@pytest.mark.parametrize("shape", [(TOKENS,), (2, TOKENS + 1), (1, 2, TOKENS)])
def test_other_shapes_are_refused(tokenizer, shape):
    decoder = FastDecoder(tokenizer, TOKENS)
    with pytest.raises(ValueError, match=r"expected \(B, 16\)"):
        decoder(torch.zeros(shape, dtype=torch.int64))


def test_tokens_must_form_a_square(tokenizer):
    with pytest.raises(ValueError, match="square"):
        FastDecoder(tokenizer, 15)


def test_float16_group_norm_accumulates_in_float32():
    """Sums of squares beyond float16's 65,504 must not overflow, nor small spreads vanish."""
    x = torch.randn(2, 32, 64, 64, generator=torch.Generator().manual_seed(0)) * 100 + 300
    for layout in (torch.contiguous_format, torch.channels_last):
        half = x.half().contiguous(memory_format=layout)
        expected = F.group_norm(half.float(), 8, eps=1e-6)
        torch.testing.assert_close(
            F.group_norm(half, 8, eps=1e-6).float(), expected, atol=3e-3, rtol=1e-3
        )
