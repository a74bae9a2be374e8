"""Logits -> codes: guidance, temperature, top-k, top-p and the draw (method section 4)."""

import argparse
import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

CFG_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn."""

    cfg: float = 1.0  # guidance strength; 1 is none and runs no unconditional half
    cfg_schedule: str = "linear"  # grows from 1 over the tokens; or `constant`
    temperature: float = 1.0  # divides the logits; values below 1e-5 count as 1e-5
    top_k: int = 0  # keep the k most likely codes; 0 keeps all
    top_p: float = 1.0  # keep the most likely codes up to this mass; 1 keeps all

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("cfg_schedule", self.cfg_schedule in CFG_SCHEDULES, f"one of {CFG_SCHEDULES}"),
            ("cfg", 0 <= self.cfg < torch.inf, "a finite number of at least 0"),
            ("temperature", 0 <= self.temperature < torch.inf, "at least 0"),
            ("top_k", isinstance(self.top_k, int) and self.top_k >= 0, "0 or a whole number"),
            ("top_p", 0 <= self.top_p <= 1, "a number in [0, 1]"),
        ):
            if not valid:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, expected {expected}")

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is needed."""
        return self.cfg != 1.0


def read_sampling(args: argparse.Namespace, label_drop_prob: float) -> SamplingSettings:
    """Read the sampling flags; warn of guidance that the model has not learned."""
    sampling = SamplingSettings(
        args.cfg, args.cfg_schedule, args.temperature, args.top_k, args.top_p
    )
    if sampling.guided:
        warn_of_guidance(label_drop_prob, f"--cfg: found {args.cfg:g}")
    return sampling


def warn_of_guidance(label_drop_prob: float, asked_for: str) -> None:
    """Warn, in a line that begins with `asked_for`, if a model was never without a class."""
    if label_drop_prob == 0:
        logger.warning(
            f"{asked_for}, but the model was trained with --label_drop_prob 0: it never learned "
            "images without a class, which guidance leads away from, and spoils them; expected 1 "
            "(none), or a model trained with --label_drop_prob 0.1"
        )


def guidance_scales(settings: SamplingSettings, num_tokens: int, device: torch.device) -> Tensor:
    """Compute the guidance strength of each token in generation order: (N,) float32."""
    if settings.cfg_schedule == "constant":
        return torch.full((num_tokens,), settings.cfg, device=device)
    ramp = torch.arange(num_tokens, device=device, dtype=torch.float32) / num_tokens
    return 1 + (settings.cfg - 1) * ramp


def pick(logits: Tensor, scales: Tensor, uniforms: Tensor, settings: SamplingSettings) -> Tensor:
    """Guide, filter and draw: logits (B, g, V) -> codes (B, g) int64.

    Under guidance of strengths `scales` (g,) there are 2B rows, the conditional half first.
    `uniforms` are (B, g) in [0, 1).
    """
    logits = logits.float()
    if settings.guided:
        cond, uncond = logits.chunk(2)
        logits = torch.addcmul(uncond, scales[:, None], cond - uncond)
    filtered = settings.top_k > 0 or settings.top_p < 1
    return draw(filtered_probabilities(logits, settings), uniforms, filtered)


def filtered_probabilities(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Apply temperature, top-k and top-p: (..., V) float32 -> probabilities, 0 if filtered out."""
    if settings.temperature != 1:
        logits = logits / max(settings.temperature, 1e-5)
    if 0 < settings.top_k < logits.shape[-1]:
        kth = logits.topk(settings.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probs = logits.softmax(dim=-1)
    if settings.top_p < 1:
        ranked, codes = probs.sort(dim=-1, descending=True, stable=True)
        # The mass before a token, so that the one that crosses top_p stays.
        mass_before = F.pad(ranked.cumsum(dim=-1)[..., :-1], (1, 0))
        ranked = ranked.masked_fill(mass_before > settings.top_p, 0)
        probs = torch.zeros_like(probs).scatter(-1, codes, ranked)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return probs


def draw(probs: Tensor, uniforms: Tensor, filtered: bool = True) -> Tensor:
    """Draw by the inverse CDF in vocabulary order: (..., V) and (...) in [0, 1) -> (...) int64.

    That is the first code whose cumulative probability exceeds its uniform number, at most the
    last of non-zero probability. `filtered`: some have zero and must not be drawn.
    """
    cumulative = probs.cumsum(dim=-1)
    if filtered:  # a GPU adds in parallel: rounding may take a step back, which would be searched
        cumulative = cumulative.cummax(dim=-1).values
    codes = torch.searchsorted(cumulative, uniforms[..., None].contiguous(), right=True)
    # Rounding may leave the total below 1: the tail then belongs to the last possible code.
    last = torch.searchsorted(cumulative, cumulative[..., -1:].contiguous())
    return torch.minimum(codes, last).squeeze(-1)
