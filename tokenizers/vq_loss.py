"""What a VQ tokenizer is trained to minimise: pixel error and LlamaGen's codebook terms."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tokenizers.vq_model import Autoencoded

# Temperature of the soft assignment of latents to codes in the entropy term.
ENTROPY_TEMPERATURE = 0.01


@dataclass(frozen=True)
class VQLosses:
    """The terms of the loss, float32 scalars, weights included."""

    reconstruction: Tensor  # mean squared pixel error, images in [-1, 1]
    codebook: Tensor  # mean squared difference, pulling codes to the latents
    commitment: Tensor  # the same, pulling latents to their codes
    entropy: Tensor  # see `entropy_term`

    @property
    def total(self) -> Tensor:
        return self.reconstruction + self.codebook + self.commitment + self.entropy


def vq_losses(
    images: Tensor,
    result: Autoencoded,
    codebook: Tensor,
    commitment: float = 0.25,
    entropy_ratio: float = 0.0,
) -> VQLosses:
    """Compute the loss of images (B, 3, S, S) in [-1, 1], with the weights of two of its terms.

    The codebook (V, E) of unit codes has a gradient; only the entropy term needs it.
    """
    latents, codes, entropy = result.latents, result.codes, images.new_zeros(())
    if entropy_ratio:
        entropy = entropy_ratio * entropy_term(latents.flatten(0, 1), codebook)
    return VQLosses(
        reconstruction=F.mse_loss(result.images.float(), images),
        codebook=F.mse_loss(codes, latents.detach()),
        commitment=commitment * F.mse_loss(latents, codes.detach()),
        entropy=entropy,
    )


def entropy_term(latents: Tensor, codebook: Tensor) -> Tensor:
    """Compute the mean entropy of the soft assignments minus the entropy of the mean one, nats.

    Low when every latent (M, E) is close to one code of (V, E) and all codes are used alike.
    """
    # Squared distance of unit vectors: 2 - 2 cos. The constant drops out of the softmax.
    log_probs = F.log_softmax(2 * latents @ codebook.mT / ENTROPY_TEMPERATURE, dim=-1)
    probs = log_probs.exp()
    mean_entropy = -(probs * log_probs).sum(dim=-1).mean()
    mean_probs = probs.mean(dim=0)
    entropy_of_mean = -(mean_probs * mean_probs.clamp_min(1e-12).log()).sum()
    return mean_entropy - entropy_of_mean
