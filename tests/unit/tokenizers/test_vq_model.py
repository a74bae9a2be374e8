"""The tokenizer's layout, its two directions, and reading and writing it."""

import json
from pathlib import Path

import pytest
import torch

from tokenizers.vq_model import USAGE_RECORD, VQModel, fingerprint, load_tokenizer, save_tokenizer
from util.errors import UserError

LAYOUT = Path(__file__).parents[2] / "golden" / "data" / "vq_ds16_state_dict.json"
SMALL = dict(codebook_size=24, codebook_embed_dim=4, ch=32, num_res_blocks=1, z_channels=16)
SMALL |= dict(encoder_ch_mult=(1, 1, 2), decoder_ch_mult=(1, 2, 1))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return VQModel(**SMALL).eval().requires_grad_(False)


def test_state_dict_is_the_published_one():
    with torch.device("meta"):
        model = VQModel()
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert found == json.loads(LAYOUT.read_text())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(71.88e6, rel=1e-4)
    assert model.stride == 16


def test_encoding_and_decoding_indices_are_the_halves_of_a_training_pass(small):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert small.stride == 4 and small.encode(images).shape == (2, 4, 4, 4)
    result = small(images)
    assert result.indices.dtype == torch.int64 and result.images.shape == images.shape
    assert torch.equal(result.indices, small.encode_indices(images))
    torch.testing.assert_close(result.images, small.decode_code(result.indices))
    torch.testing.assert_close(result.latents.norm(dim=-1), torch.ones(2, 16))
    # Raster order: token p belongs to pixel block (p // side, p % side).
    latents = torch.nn.functional.normalize(small.encode(images)[0, :, [2, 3], [3, 0]].mT)
    assert torch.equal(result.indices[0, [2 * 4 + 3, 3 * 4]], small.quantize.nearest(latents))


def test_nearest_is_the_smallest_distance_of_unit_vectors(small, monkeypatch):
    vectors = torch.nn.functional.normalize(torch.randn(50, 4), dim=-1)
    expected = torch.cdist(vectors.double(), small.quantize.codes().double()).argmin(dim=-1)
    assert torch.equal(small.quantize.nearest(vectors), expected)
    monkeypatch.setattr("tokenizers.vq_model.LOOKUP_ENTRIES", 100)  # chunks of 4
    assert torch.equal(small.quantize.nearest(vectors), expected)


def test_usage_record_rolls(small):
    quantizer = VQModel(**SMALL).quantize
    quantizer.record_usage(torch.full((2, 3), 7))
    quantizer.record_usage(torch.tensor([9]))
    assert quantizer.codebook_used[-7:].tolist() == [7] * 6 + [9]
    quantizer.record_usage(torch.full((USAGE_RECORD + 5,), 3))
    assert quantizer.codebook_used.shape == (USAGE_RECORD,)
    assert (quantizer.codebook_used == 3).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch": 48}, "found ch 48, expected a multiple of 32"),
        ({"codebook_size": 0}, "expected positive whole numbers"),
        ({"z_channels": 2.5}, "expected positive whole numbers"),
        ({"encoder_ch_mult": ()}, "expected as many decoder levels"),
        ({"encoder_ch_mult": (1, 2)}, "expected as many decoder levels"),
    ],
)
def test_impossible_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        VQModel(**{**SMALL, **change})


def test_save_and_load(small, tmp_path):
    path = tmp_path / "vq.pt"
    save_tokenizer(path, small, epoch=3)
    loaded = load_tokenizer(path, codebook_size=24)
    assert loaded.config == SMALL
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert fingerprint(loaded) == fingerprint(small)
    assert torch.load(path, weights_only=True)["epoch"] == 3


@pytest.fixture
def twin(small):
    twin = VQModel(**SMALL)
    twin.load_state_dict(small.state_dict())
    return twin


def test_indices_ignore_the_codebooks_scale(small, twin):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    before = small.encode_indices(images)
    twin.quantize.embedding.weight.data *= torch.rand(24, 1) + 0.5
    assert torch.equal(twin.encode_indices(images), before)
    torch.testing.assert_close(twin.decode_code(before), small.decode_code(before))


def test_fingerprint_covers_every_weight_but_not_the_usage_record(small, twin):
    twin.quantize.record_usage(torch.tensor([1, 2, 3]))
    assert fingerprint(twin) == fingerprint(small)
    assert fingerprint(twin.to(memory_format=torch.channels_last)) == fingerprint(small)
    twin.decoder.conv_out.bias.data[1] += 1e-6
    assert fingerprint(twin) != fingerprint(small)
    assert fingerprint(twin.double()) != fingerprint(twin.float())
    assert len(fingerprint(small)) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"width": 3}}, "expected VQModel's arguments"),
        ({"config": {**SMALL, "encoder_ch_mult": 7}}, "expected VQModel's arguments"),
        ({"config": {**SMALL, "ch": 64}}, r"has shape \(32,.*expected \(64,"),
        # the published sizes
        ({"config": None}, r"conv_in.weight has shape \(32.*expected \(128, 3, 3, 3"),
    ],
)
def test_bad_checkpoints_end_in_one_line(small, tmp_path, changes, message):
    torch.save({"model": small.state_dict(), **changes}, tmp_path / "vq.pt")
    with pytest.raises(UserError, match=r"^--vqgan_path: .*vq\.pt.*" + message) as caught:
        load_tokenizer(tmp_path / "vq.pt")
    assert "\n" not in str(caught.value)
