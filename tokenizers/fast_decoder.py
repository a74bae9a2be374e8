"""The fast path from code indices to pixels: half precision, channels last, captured."""

import copy
import logging

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cuda_graphs import CaptureError, GraphCache, WeightState
from tokenizers.vq_model import VQModel
from util import streams
from util.device import plain_float32
from util.geometry import grid_side
from util.images import to_uint8

logger = logging.getLogger(__name__)

# A precision is accurate enough if this share of grey levels is within one of float32's.
MIN_AGREEMENT = 0.999
PROBE_IMAGES = 2
# Decoded at a time, in pixels (16 images of 256 x 256): they fill a GPU and bound its memory.
MAX_PIXELS = 16 * 256**2
# Numbers of images at a time with a graph of their own.
MAX_GRAPHS = 4


class DecoderCopy(nn.Module):
    """VQ decoder in `dtype`, channels last, on the tokenizer's device."""

    def __init__(self, tokenizer: VQModel, dtype: torch.dtype) -> None:
        super().__init__()
        decoder = copy.deepcopy(tokenizer.decoder).requires_grad_(False)
        self.decoder = decoder.to(dtype, memory_format=torch.channels_last)
        with torch.no_grad(), plain_float32(tokenizer.quantize.embedding.weight.device):
            codes = tokenizer.quantize.codes().mT[None, :, :, None]
            features = tokenizer.post_quant_conv(codes)[0, :, :, 0].mT.contiguous()
        # Every code as the decoder sees it, (codebook_size, z_channels).
        self.register_buffer("features", features.to(dtype))

    def forward(self, indices: Tensor) -> Tensor:
        """(B, N) int64 -> (B, S, S, 3) uint8."""
        side = grid_side(indices.shape[1])
        x = F.embedding(indices, self.features).mT.unflatten(-1, (side, side))
        return to_uint8(self.decoder(x))


class FastDecoder:
    """Decode code indices of images of `num_tokens` to pixels, as fast as the device can.

    Stands for `to_uint8(tokenizer.decode_code(indices))`, within one grey level for 99.9 % of the
    values of a probe batch (`agreement`), or else in float32. A CUDA device tries float16, then
    bfloat16, and captures CUDA graphs; on a CPU the one is slow, the other not accurate enough. A
    given `dtype` is the only one tried; the one in use is an attribute. Changed or moved weights
    are noticed at the next call, except writes through `.data`, which PyTorch does not count.
    """

    def __init__(
        self, tokenizer: VQModel, num_tokens: int, *, dtype: torch.dtype | None = None
    ) -> None:
        self._tokenizer, self._num_tokens, self._wanted = tokenizer, num_tokens, dtype
        image_size = grid_side(num_tokens) * tokenizer.stride
        self._images_at_a_time = max(1, MAX_PIXELS // image_size**2)
        self._build()

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> Tensor:
        """Decode (B, N) int64 indices in raster order to (B, S, S, 3) uint8, contiguous."""
        if indices.ndim != 2 or indices.shape[1] != self._num_tokens:
            shape = tuple(indices.shape)
            raise ValueError(f"indices: found shape {shape}, expected (B, {self._num_tokens})")
        if self._state is None or not self._state.is_current(self._weights()):
            self._build()
        with plain_float32(self._device):
            parts = [self._decode(part) for part in indices.split(self._images_at_a_time)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, indices: Tensor) -> Tensor:
        if self._graphs is None:
            return self._copy(indices)
        try:
            return self._graphs.run(f"VQ decoder, batch of {len(indices)}", self._copy, indices)
        except torch.OutOfMemoryError:
            self._graphs.clear()  # without their memory there may be room, now and later
        except CaptureError as error:
            logger.warning("VQ decoder: decoding without CUDA graphs, because %s", error)
            self._graphs = None
        return self._copy(indices)

    def _weights(self) -> list[Tensor]:
        """List all that `DecoderCopy` copies."""
        own = self._tokenizer
        parts = own.decoder, own.post_quant_conv, own.quantize
        return [weight for part in parts for weight in part.parameters()]

    @torch.no_grad()
    def _build(self) -> None:
        """Make the copy, in the first precision that is accurate enough."""
        self._state = None  # until all went well
        weights = self._weights()
        self._device = weights[0].device
        self._graphs = GraphCache(MAX_GRAPHS) if self._device.type == "cuda" else None
        dtypes = (torch.float16, torch.bfloat16) if self._graphs is not None else ()
        if self._wanted is not None:
            dtypes = (self._wanted,)
        for dtype in (*dtypes, torch.float32):
            self._copy = DecoderCopy(self._tokenizer, dtype)
            self.dtype, self.agreement = dtype, 1.0
            if dtype == torch.float32:
                break
            self.agreement = self._measure()
            accurate = self.agreement >= MIN_AGREEMENT
            logger.info(
                "VQ decoder: %s keeps %.3f %% of grey levels within one of float32 (%s %.1f %%)",
                str(dtype).removeprefix("torch."),
                100 * self.agreement,
                "accepted: at least" if accurate else "rejected: below",
                100 * MIN_AGREEMENT,
            )
            if accurate:
                break
        self._state = WeightState(weights)

    def _measure(self) -> float:
        """Return the share of a probe's uint8 values within one of the plain path's."""
        words = streams.words("VQ decoder probe", np.arange(PROBE_IMAGES), count=self._num_tokens)
        codes = (words % np.uint64(self._tokenizer.codebook_size)).astype(np.int64)
        indices = torch.from_numpy(codes).to(self._device)
        with plain_float32(self._device):
            expected = to_uint8(self._tokenizer.decode_code(indices))
            images = self._copy(indices)
        return ((images.int() - expected.int()).abs() <= 1).float().mean().item()
