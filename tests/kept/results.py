"""What the kept networks and the seeds give: computed to be kept, and to be compared with that."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.decoding import generate
from models.editing import edit
from models.lpd import LPD
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders, random_orders

# Grid and decoding steps of 256 and of 512 pixels, with the published repulsion.
PUBLISHED = ((16, 20, 2), (16, 32, 2), (32, 48, 4))
LABELS = (0, 2, 1)
SAMPLED = {
    "greedy": {"top_k": 1},
    "plain": {"sampler": "plain", "seed": 5},
    "guided": {"cfg": 3.0, "top_p": 0.9, "image_ids": [7, 1, 40]},
    "constant": {"cfg": 2.0, "cfg_schedule": "constant", "temperature": 1.2, "top_k": 8},
}


def order_hashes() -> dict[str, str]:
    """sha256 of the orders (5, N), as little-endian int64, of some settings and seeds."""
    hashes = {}
    for grid, steps, repulsion in PUBLISHED:
        sizes = group_sizes(grid**2, steps)
        for seed in (0, 2**40 + 3):
            far = {"repulsion_threshold": repulsion, "seed": seed}
            made = {
                "lpd": locality_aware_orders(5, sizes, grid, **far),
                "lpd of ids": locality_aware_orders(2, sizes, grid, **far, image_ids=[49999, 3]),
                "random": random_orders(5, grid**2, seed=seed),
            }
            for kind, orders in made.items():
                content = np.ascontiguousarray(orders, dtype="<i8").tobytes()
                name = f"{kind}, {grid} x {grid}, {steps} steps, seed {seed}"
                hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


def tokens_of(model: LPD) -> dict[str, list[list[int]]]:
    """Tokens (3, N) by a name: samples of four settings, with and without classes, and an edit."""
    num_tokens = model.grid.num_tokens
    raster = np.tile(np.arange(num_tokens), (3, 1))
    tokens = {
        name: generate(model, LABELS, None, 6, **settings) for name, settings in SAMPLED.items()
    }
    tokens["raster"] = generate(model, LABELS, raster, [1] * num_tokens)
    tokens["no class"] = generate(model, None, raster[:, ::-1].copy(), 12, seed=1)
    mask = torch.zeros(3, num_tokens, dtype=torch.bool)
    mask[0, 10:30] = mask[1, ::3] = True
    tokens["edit"] = edit(model, tokens["greedy"], mask, LABELS, seed=9, cfg=1.5)
    return {name: rows.tolist() for name, rows in tokens.items()}


def results(folder: Path) -> dict[str, Any]:
    """All of them, of the networks in a folder; whole numbers and text."""
    final = LPD.from_pretrained(folder / "published.pth")
    training = LPD.from_pretrained(folder / "training" / "checkpoint-last.pth")
    return {
        "order_hashes": order_hashes(),
        "tokens": tokens_of(final),
        "tokens_in_training": tokens_of(training),
    }
