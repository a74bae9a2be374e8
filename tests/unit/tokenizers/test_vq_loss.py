"""The terms of the tokenizer's loss and where their gradients go."""

import pytest
import torch
import torch.nn.functional as F

from tokenizers.vq_loss import entropy_term, vq_losses
from tokenizers.vq_model import VQModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VQModel(16, 4, 32, (1, 1), (1, 1), 1, 8)


def _loss(model, **weights):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    result = model(images)
    return images, result, vq_losses(images, result, model.quantize.codes(), **weights)


def _has_gradient(module):
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_values(model):
    images, result, losses = _loss(model, commitment=0.5)
    difference = (result.codes - result.latents).square().mean()
    torch.testing.assert_close(losses.reconstruction, (result.images - images).square().mean())
    torch.testing.assert_close(losses.codebook, difference)
    torch.testing.assert_close(losses.commitment, 0.5 * difference)
    assert losses.entropy == 0
    torch.testing.assert_close(losses.total, losses.reconstruction + 1.5 * difference)


@pytest.mark.parametrize(
    ("term", "encoder", "codebook", "decoder"),
    [
        ("reconstruction", True, False, True),  # straight through: past the codebook
        ("codebook", False, True, False),
        ("commitment", True, False, False),
        ("entropy", True, True, False),
        ("total", True, True, True),
    ],
)
def test_gradients(model, term, encoder, codebook, decoder):
    _, _, losses = _loss(model, entropy_ratio=0.1)
    getattr(losses, term).backward()
    parts = model.encoder, model.quantize, model.decoder
    assert [_has_gradient(part) for part in parts] == [encoder, codebook, decoder]


def test_the_decoders_gradient_passes_the_quantiser_unchanged(model):
    images = torch.rand(1, 3, 8, 8)
    result = model(images)
    leaf = result.codes.detach().requires_grad_()
    decoded = model.decoder(model.post_quant_conv(leaf.mT.unflatten(-1, (4, 4))))
    (expected,) = torch.autograd.grad(decoded.square().sum(), leaf)
    (found,) = torch.autograd.grad(result.images.square().sum(), result.latents)
    torch.testing.assert_close(found, expected)


def test_entropy_term_by_direct_computation():
    torch.manual_seed(0)
    latents, codebook = (F.normalize(torch.randn(n, 5), dim=-1) for n in (30, 7))
    distances = torch.cdist(latents.double(), codebook.double()) ** 2
    assigned = torch.distributions.Categorical(logits=-distances / 0.01)
    of_mean = torch.distributions.Categorical(probs=assigned.probs.mean(0)).entropy()
    expected = assigned.entropy().mean() - of_mean
    torch.testing.assert_close(entropy_term(latents, codebook).double(), expected)
