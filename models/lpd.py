"""The LPD network: two kinds of input token, a transformer, logits at the queries (method 2-3)."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hub.pretrained import Pretrained
from hub.published import WEIGHTS
from hub.weights import Weights
from models.cross_entropy import linear_cross_entropy
from models.masks import group_causal_mask
from models.transformer import LAYER_NORM_EPS, Block, KVCache
from util.geometry import TokenGrid, grid_side

logger = logging.getLogger(__name__)

# Width, depth and heads of each size.
SIZES = {
    "lpd_tiny": (192, 6, 6),  # for the demo and small grids
    "lpd_l": (1024, 24, 16),  # 337 M parameters
    "lpd_xl": (1280, 36, 20),  # 752 M
    "lpd_xxl": (1536, 48, 24),  # 1412 M
}


class LPD(nn.Module, Pretrained, tags=["image-generation"]):
    """Decoder-only transformer that predicts code indices in any order, any number at a time."""

    kind = WEIGHTS
    description = "A transformer that generates the codes of an image in parallel, in any order."
    usage = """from models.lpd import LPD

model = LPD.from_pretrained("user/name")"""

    def __init__(
        self,
        img_size: int = 256,  # pixels along a side
        vqgan_stride: int = 16,  # pixels per token along a side
        decoder_embed_dim: int = 1024,
        decoder_depth: int = 24,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        label_drop_prob: float = 0.1,  # share of training images without their class
        class_num: int = 1000,
        attn_dropout: float = 0.0,  # on attention weights; the published models had none in effect
        proj_dropout: float = 0.1,  # after the attention projection and in the MLP
        grad_checkpointing: bool = False,  # recompute each block in the backward pass
        vqgan_vocab_size: int = 16384,  # number of codes
        blind_queries: bool = False,  # an ablation: those of a group do not see one another
    ) -> None:
        super().__init__()
        self.grid = TokenGrid(img_size, vqgan_stride, vqgan_vocab_size)
        self.class_num = class_num
        self.label_drop_prob = label_drop_prob
        self.grad_checkpointing = grad_checkpointing
        self.blind_queries = blind_queries
        self._sparse_masks = False
        if attn_dropout > 0:
            logger.warning("attn_dropout %g applies; the published models had none", attn_dropout)

        dim = decoder_embed_dim
        self.fake_latent = nn.Parameter(torch.empty(1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid.num_tokens, dim))
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.class_emb = nn.Embedding(class_num, dim)
        self.token_emb = nn.Embedding(vqgan_vocab_size, dim)
        self.z_proj_ln = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(dim, decoder_num_heads, mlp_ratio, attn_dropout, proj_dropout)
            for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(dim, vqgan_vocab_size, bias=False)
        # As published (method section 8); LayerNorms keep ones and zeros.
        tables = (self.class_emb.weight, self.token_emb.weight)
        for table in (*tables, self.pos_embed, self.mask_token, self.fake_latent):
            nn.init.normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed_class(
        self, labels: Tensor | None, batch_size: int, drop: Tensor | None = None
    ) -> Tensor:
        """Embed labels (B,) int64 -> (B, 1, C); "no class" if None or where `drop` (B,)."""
        if labels is None:
            x = self.fake_latent.expand(batch_size, -1)
        else:
            x = self.class_emb(labels)
            if drop is not None:
                x = torch.where(drop[:, None], self.fake_latent, x)
        return self.z_proj_ln(x[:, None] + self.pos_embed[:, :1])

    def embed_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Embed context tokens: codes at raster positions, both (B, T) int64 -> (B, T, C)."""
        return self.z_proj_ln(self.token_emb(tokens) + self.pos_embed[0, 1 + positions])

    def embed_queries(self, positions: Tensor) -> Tensor:
        """Embed position queries at raster positions (B, T) int64 -> (B, T, C)."""
        return self.z_proj_ln(self.mask_token + self.pos_embed[0, 1 + positions])

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        group_sizes: Sequence[int],
        orders: Tensor | None = None,
        label_drop: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean cross-entropy over all N queries: scalar float32, nats per token.

        Tokens (B, N) int64 are in raster order, labels (B,) int64, `group_sizes` sum to N. Orders
        (B, N) int64 are raster positions in generation order, uniformly random if None. The class
        is dropped where `label_drop` (B,), in training mode drawn with `label_drop_prob` if None.
        """
        if orders is None:
            orders = torch.rand(tokens.shape, device=tokens.device).argsort(dim=1)
        if label_drop is None and self.training:
            label_drop = torch.rand(labels.shape, device=labels.device) < self.label_drop_prob
        x = self.forward_queries(tokens, labels, group_sizes, orders, label_drop)
        targets = tokens.gather(1, orders)
        return linear_cross_entropy(x.flatten(0, 1), self.head.weight, targets.flatten())

    def forward_logits(self, *arguments: Any, **options: Any) -> Tensor:
        """Compute teacher-forced logits of all steps (B, N, V), arguments as `forward_queries`."""
        return self.head(self.forward_queries(*arguments, **options))

    def forward_queries(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        group_sizes: Sequence[int],
        orders: Tensor,
        label_drop: Tensor | None = None,
    ) -> Tensor:
        """Compute what the head reads: (B, N, C), generation order; None is "no class"."""
        batch_size, num_tokens = tokens.shape
        if (total := sum(group_sizes)) != num_tokens:
            raise ValueError(f"group_sizes: found a sum of {total}, expected {num_tokens}")
        sparse = self._sparse_masks
        mask = group_causal_mask(tuple(group_sizes), tokens.device, self.blind_queries, sparse)
        positions = orders[:, : num_tokens - (1 if sparse else group_sizes[-1])]
        first = self.embed_class(labels, batch_size, label_drop)
        context = self.embed_tokens(tokens.gather(1, positions), positions)
        x = torch.cat([first, context, self.embed_queries(orders)], dim=1)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return self.norm(x[:, -num_tokens:])

    def compile_blocks(self, sparse: bool, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the blocks at their first run, with `sparse` masks (on a GPU) where they can."""
        attention = self.blocks[0].attn
        # They know no dropout, and smaller heads do not fill the tiles of their kernel.
        self._sparse_masks = sparse and attention.attn_dropout == 0 and attention.head_size >= 16
        # DDP exchanges gradients of one block while the next is worked on anyway; its optimiser
        # would cut every block into programs of 25 MB of weights.
        torch._dynamo.config.optimize_ddp = False
        for block in self.blocks:
            block.compile(backend=backend, dynamic=not self._sparse_masks)

    @torch.no_grad()
    def round_products(self, dtype: torch.dtype = torch.bfloat16) -> "LPD":
        """Round the weights of matrix products in place, as autocast does: half of their memory."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self

    def compute_dtype(self) -> torch.dtype:
        """Return the dtype of products: of an enclosing `torch.autocast`, else of the weights."""
        device = self.pos_embed.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.pos_embed.dtype

    def new_cache(self, batch_size: int, dtype: torch.dtype | None = None) -> KVCache:
        """Make an empty cache for one generation, by default in `compute_dtype`."""
        attention, capacity = self.blocks[0].attn, 1 + self.grid.num_tokens
        shape = (len(self.blocks), 2, batch_size, attention.num_heads, capacity)
        where = {"dtype": dtype or self.compute_dtype(), "device": self.pos_embed.device}
        return KVCache(torch.empty(*shape, attention.head_size, **where), self.blind_queries)

    def decode_step(self, context: Tensor, queries: Tensor, cache: KVCache) -> Tensor:
        """One step of parallel decoding (method section 4): queries (B, g, C) -> (B, g, V) logits.

        The context (B, T, C), which extends the cache, is what became known since the last step:
        first the class token and the tokens known from the start, then those of the step before.
        """
        num_context = context.shape[1]
        x = torch.cat([context, queries], dim=1)
        for layer, block in enumerate(self.blocks):
            x = block.decode(x, num_context, cache, layer)
        cache.length += num_context
        return self.head(self.norm(x[:, num_context:]))

    @classmethod
    def config_of(cls, weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
        """Read the arguments off the shapes, which say nothing of heads, stride and dropout.

        The heads are those `given`, else of the size with this width and depth; the others are as
        in the flags of the training run, else as published.
        """
        state, flags = weights.state, weights.flags

        def shape(name: str, dimensions: int) -> tuple[int, ...]:
            weight = state.get(name)
            if not isinstance(weight, Tensor) or weight.dim() != dimensions or 0 in weight.shape:
                expected = "expected the weights of an LPD model"
                raise ValueError(f"found no weight {name} as in LPD, {expected}")
            return tuple(weight.shape)

        _, rows, width = shape("pos_embed", 3)
        side = grid_side(rows - 1)
        depth = len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)})
        known = {size[:2]: size[2] for size in SIZES.values()}
        heads = given.get("decoder_num_heads", known.get((width, depth)))
        if heads is None:
            found = f"width {width} and depth {depth}, which is no known size"
            raise ValueError(f"found {found}, expected its decoder_num_heads")
        img_size = flags.get("img_size")
        if not isinstance(img_size, int) or img_size < 1 or img_size % side:
            img_size = side * 16  # as the published tokenizer
        # Flags of a training run that are arguments of the same name, and change no shape.
        kinds = {"label_drop_prob": float, "attn_dropout": float, "proj_dropout": float}
        kinds["blind_queries"] = bool
        return {
            "img_size": img_size,
            "vqgan_stride": img_size // side,
            "decoder_embed_dim": width,
            "decoder_depth": depth,
            "decoder_num_heads": heads,
            "mlp_ratio": shape("blocks.0.mlp.fc1.weight", 2)[0] / width,
            "class_num": shape("class_emb.weight", 2)[0],
            "vqgan_vocab_size": shape("token_emb.weight", 2)[0],
            **{key: flags[key] for key in kinds if isinstance(flags.get(key), kinds[key])},
        }


MODELS = {
    name: partial(LPD, decoder_embed_dim=width, decoder_depth=depth, decoder_num_heads=heads)
    for name, (width, depth, heads) in SIZES.items()
}
lpd_tiny, lpd_l, lpd_xl, lpd_xxl = MODELS.values()
