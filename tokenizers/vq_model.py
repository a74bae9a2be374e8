"""The image tokenizer: LlamaGen's VQ autoencoder (method section 7), images <-> code indices."""

import hashlib
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hub.pretrained import Pretrained
from hub.published import TOKENIZER
from hub.weights import atomic_save, read_weights
from util.errors import UserError
from util.geometry import grid_side
from util.images import to_uint8

# Length of the rolling record of used codes; fixed by the published state dict.
USAGE_RECORD = 65_536
# Look-ups are done this many similarities at a time (float64: 0.5 GB).
LOOKUP_ENTRIES = 2**26

_norm = partial(nn.GroupNorm, 32, eps=1e-6)


def _conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResBlock(nn.Module):
    """(norm, swish, conv) twice, plus the input, which a 1x1 conv widens where needed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = _conv3(in_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.conv2 = _conv3(out_channels, out_channels)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the feature map, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # (B, C, H, W) -> (B, one head, HW, C); the default scale is then C ** -0.5.
        q, k, v = (conv(h).flatten(2).mT.unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).mT.reshape(x.shape))


class Downsample(nn.Module):
    """Half the side: one row and column of zeros at the bottom right, then a strided conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: nearest neighbour, then a conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution: residual, each followed by attention if there is any."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_blocks
        self.res = nn.ModuleList(ResBlock(a, b) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(channels) for _ in range(num_blocks * attention))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


def _middle(channels: int) -> nn.ModuleList:
    first = ResBlock(channels, channels)
    return nn.ModuleList([first, AttnBlock(channels), ResBlock(channels, channels)])


class Encoder(nn.Module):
    """Images (B, 3, S, S) -> features (B, z_channels, S / stride, S / stride)."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_blocks: int, z_channels: int) -> None:
        super().__init__()
        self.conv_in = _conv3(3, ch)
        self.conv_blocks = nn.ModuleList()
        width, lowest = ch, len(ch_mult) - 1
        for i, mult in enumerate(ch_mult):
            level = Level(width, ch * mult, num_blocks, attention=i == lowest)
            width = ch * mult
            level.downsample = Downsample(width) if i < lowest else nn.Identity()
            self.conv_blocks.append(level)
        self.mid = _middle(width)
        self.norm_out = _norm(width)
        self.conv_out = _conv3(width, z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level.downsample(level(x))
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Features (B, z_channels, G, G) -> images (B, 3, G * stride, G * stride)."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_blocks: int, z_channels: int) -> None:
        super().__init__()
        width, finest = ch * ch_mult[-1], len(ch_mult) - 1
        self.conv_in = _conv3(z_channels, width)
        self.mid = _middle(width)
        self.conv_blocks = nn.ModuleList()
        for i, mult in enumerate(reversed(ch_mult)):  # level 0 is the coarsest
            level = Level(width, ch * mult, num_blocks + 1, attention=i == 0)
            width = ch * mult
            level.upsample = Upsample(width) if i < finest else nn.Identity()
            self.conv_blocks.append(level)
        self.norm_out = _norm(width)
        self.conv_out = _conv3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in self.conv_blocks:
            x = level.upsample(level(x))
        return self.conv_out(F.silu(self.norm_out(x)))


class VectorQuantizer(nn.Module):
    """A codebook of directions: unit vectors, compared with unit vectors."""

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        with torch.no_grad():
            self.embedding.weight.copy_(self.codes())
        # The last indices looked up in training, oldest first; says which codes are in use.
        self.register_buffer("codebook_used", torch.zeros(USAGE_RECORD))

    def codes(self) -> Tensor:
        """Return the whole codebook as unit vectors, (codebook_size, embed_dim)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Find the codes nearest to unit `vectors` (M, embed_dim): indices (M,) int64."""
        # float64, because neither autocast nor TF32 touches it: the same image has the same
        # indices whatever precision the run around it uses.
        codes = self.codes().double()
        chunks = vectors.double().split(max(1, LOOKUP_ENTRIES // len(codes)))
        return torch.cat([(chunk @ codes.mT).argmax(dim=-1) for chunk in chunks])

    def lookup(self, indices: Tensor) -> Tensor:
        """Look up the unit codes (..., embed_dim) of `indices` (...)."""
        return F.normalize(self.embedding(indices), dim=-1)

    @torch.no_grad()
    def record_usage(self, indices: Tensor) -> None:
        """Append `indices` (any shape) to the rolling record of used codes."""
        latest = torch.cat([self.codebook_used, indices.flatten().to(self.codebook_used.dtype)])
        self.codebook_used.copy_(latest[-USAGE_RECORD:])


class Autoencoded(NamedTuple):
    """What training needs of one pass."""

    images: Tensor  # (B, 3, S, S) reconstructions
    latents: Tensor  # (B, N, E) unit vectors from the encoder
    codes: Tensor  # (B, N, E) the unit codes that replace them, with gradient to the codebook
    indices: Tensor  # (B, N) int64, raster order


class VQModel(nn.Module, Pretrained, tags=["image-tokenizer"]):
    """Images (B, 3, S, S) in [-1, 1] <-> code indices (B, (S / stride) ** 2) in raster order.

    The multipliers are widths of the levels of both halves in units of `ch` (a multiple of 32),
    finest first; each level but the last halves the side.
    """

    kind = TOKENIZER
    description = "LlamaGen's VQ autoencoder: images to code indices and back."
    usage = """from tokenizers.vq_model import VQModel

tokenizer = VQModel.from_pretrained("user/name")"""

    def __init__(
        self,
        codebook_size: int = 16384,
        codebook_embed_dim: int = 8,
        ch: int = 128,
        encoder_ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        decoder_ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,  # per encoder level; the decoder has one more
        z_channels: int = 256,  # width between the two halves and the codebook
    ) -> None:
        super().__init__()
        encoder_ch_mult, decoder_ch_mult = tuple(encoder_ch_mult), tuple(decoder_ch_mult)
        sizes = (codebook_size, codebook_embed_dim, ch, num_res_blocks, z_channels)
        sizes += encoder_ch_mult + decoder_ch_mult
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError(f"found sizes {sizes}, expected positive whole numbers")
        if ch % 32:
            raise ValueError(f"found ch {ch}, expected a multiple of 32")
        if not len(encoder_ch_mult) == len(decoder_ch_mult) > 0:
            found = f"found multipliers {encoder_ch_mult} and {decoder_ch_mult}"
            raise ValueError(f"{found}, expected as many decoder levels as encoder levels")
        rest = {"num_res_blocks": num_res_blocks, "z_channels": z_channels}
        multipliers = {"encoder_ch_mult": encoder_ch_mult, "decoder_ch_mult": decoder_ch_mult}
        codebook = {"codebook_size": codebook_size, "codebook_embed_dim": codebook_embed_dim}
        self.config: dict[str, Any] = {**codebook, "ch": ch, **multipliers, **rest}
        self.encoder = Encoder(ch, encoder_ch_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(ch, decoder_ch_mult, num_res_blocks, z_channels)
        self.quantize = VectorQuantizer(codebook_size, codebook_embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(codebook_embed_dim, z_channels, 1)

    @property
    def codebook_size(self) -> int:
        return self.quantize.embedding.num_embeddings

    @property
    def stride(self) -> int:
        """Pixels per token along a side."""
        return 2 ** (len(self.encoder.conv_blocks) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Compute latents (B, E, S/stride, S/stride), before normalisation."""
        return self.quant_conv(self.encoder(images))

    def encode_indices(self, images: Tensor) -> Tensor:
        """Tokenize float images (B, 3, S, S) in [-1, 1], S in strides: (B, N) int64 codes."""
        return self._match(self.encode(images))[1]

    def decode_code(self, indices: Tensor) -> Tensor:
        """Decode indices (B, N) int64, raster order, to float images (B, 3, S, S), not clipped."""
        return self._decode(self.quantize.lookup(indices))

    @torch.no_grad()
    def decode_images(self, indices: Tensor) -> list[Image.Image]:
        """Decode to B PIL images in RGB; `indices` as of `decode_code`."""
        pixels = to_uint8(self.decode_code(indices.to(self.quantize.embedding.weight.device)))
        return [Image.fromarray(image) for image in pixels.cpu().numpy()]

    def forward(self, images: Tensor) -> Autoencoded:
        """Run a training pass; the decoder's gradient goes straight through the quantiser."""
        latents, indices = self._match(self.encode(images))
        codes = self.quantize.lookup(indices)
        straight_through = latents + (codes - latents).detach()
        return Autoencoded(self._decode(straight_through), latents, codes, indices)

    def _match(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise a feature map (B, E, G, G) to (B, N, E) and find the nearest codes (B, N)."""
        vectors = F.normalize(latents.float().flatten(2).mT, dim=-1)
        nearest = self.quantize.nearest(vectors.detach().flatten(0, 1))
        return vectors, nearest.view(vectors.shape[:2])

    def _decode(self, codes: Tensor) -> Tensor:
        """Decode unit codes (B, N, E)."""
        side = grid_side(codes.shape[1])
        return self.decoder(self.post_quant_conv(codes.mT.unflatten(-1, (side, side))))


def save_tokenizer(path: str | Path, model: VQModel, **extra: Any) -> None:
    """Write `model`, its configuration and whatever else is given by name, atomically."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    atomic_save({**extra, "model": state, "config": model.config}, path)


def load_tokenizer(path: str | Path, codebook_size: int | None = None) -> VQModel:
    """Read a tokenizer, published or ours, for inference: on the CPU, in float32 and eval mode.

    A UserError if it is none, or not of `codebook_size` codes, begins with `--vqgan_path`.
    """
    what = f"--vqgan_path: {path}"
    model = VQModel.from_weights(read_weights(path, "--vqgan_path"), what)
    if codebook_size not in (None, model.codebook_size):
        found = f"{what} has {model.codebook_size} codes"
        raise UserError(f"{found}, expected {codebook_size} (--vqgan_vocab_size)")
    return model.requires_grad_(False)


def fingerprint(model: VQModel) -> str:
    """Hash a tokenizer: sha256 (hex) over names, dtypes, shapes and bytes of its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name != "quantize.codebook_used":  # which changes nothing
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
