"""The fast path from code indices to pixels: half precision, channels last, captured."""

from __future__ import annotations

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
        self.register_buffer("features", _code_features(tokenizer).to(dtype))

    @torch.no_grad()
    def load(self, tokenizer: VQModel) -> None:
        """Copy the tokenizer's weights in place, so that captured graphs stay valid."""
        weights = tokenizer.decoder.parameters()
        for own, weight in zip(self.decoder.parameters(), weights, strict=True):
            own.copy_(weight)
        self.features.copy_(_code_features(tokenizer))

    def forward(self, indices: Tensor) -> Tensor:
        """(B, N) int64 -> (B, S, S, 3) uint8."""
        side = grid_side(indices.shape[1])
        x = F.embedding(indices, self.features).mT.unflatten(-1, (side, side))
        return to_uint8(self.decoder(x))


@torch.no_grad()
def _code_features(tokenizer: VQModel) -> Tensor:
    """Compute every code as the decoder sees it, (codebook_size, z_channels)."""
    with plain_float32(tokenizer.quantize.embedding.weight.device):
        codes = tokenizer.quantize.codes().mT[None, :, :, None]
        return tokenizer.post_quant_conv(codes)[0, :, :, 0].mT.contiguous()


def _decoding_weights(tokenizer: VQModel) -> list[Tensor]:
    """List all that `DecoderCopy` copies."""
    parts = tokenizer.decoder, tokenizer.post_quant_conv, tokenizer.quantize
    return [weight for part in parts for weight in part.parameters()]


class FastDecoder:
    """Decode code indices of images of `num_tokens` to pixels, as fast as the device can.

    Stands for `to_uint8(tokenizer.decode_code(indices))`, within one grey level for 99.9 % of the
    values of a probe batch, or else in float32. On a CUDA device float16 and bfloat16 are tried and
    the decoder runs in CUDA graphs. A CPU uses float32: bfloat16 is not accurate enough there
    either, and float16 is slow. A given `dtype` is the only one tried; the one in use is an
    attribute, as is `agreement`, the share of the probe within one grey level of float32.

    Changed or moved weights are noticed at the next call, except writes through `.data`, which
    PyTorch does not count.
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
        self._follow_weights()
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

    def _follow_weights(self) -> None:
        weights = _decoding_weights(self._tokenizer)
        if self._state is None or weights[0].device != self._device:
            self._build()
        elif not self._state.is_current(weights):
            self._copy.load(self._tokenizer)
            state = WeightState(weights)
            # Without versions this happens at every call: what was measured at first must do.
            if state.versioned and self.dtype != torch.float32:
                self.agreement = self._measure()
            if self.agreement < MIN_AGREEMENT:
                self._build()
            self._state = state

    @torch.no_grad()
    def _build(self) -> None:
        """Make the copy, in the first precision that is accurate enough."""
        self._state = None  # until all went well
        weights = _decoding_weights(self._tokenizer)
        self._device = weights[0].device
        self._graphs = GraphCache(MAX_GRAPHS) if self._device.type == "cuda" else None
        dtypes = (torch.float16, torch.bfloat16) if self._graphs is not None else ()
        if self._wanted is not None:
            dtypes = (self._wanted,)
        for dtype in (*dtypes, torch.float32):
            with torch.inference_mode(False):  # whose tensors could not be written to later
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
