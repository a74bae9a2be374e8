"""What the Hub of the tests publishes: small weights in the published forms, by their names."""

import io
import json
from typing import Any

import numpy as np
import torch

from models.lpd import LPD, lpd_tiny
from orders.locality import random_orders
from tests.hub.server import Hub
from tokenizers.vq_model import VQModel

STEPS20 = "res256_steps20_repulsion2"
CODES = 32


def published_lpd(classes: int = 1000) -> LPD:
    """A small network for the published grid: 16 x 16 tokens of 16 pixels."""
    torch.manual_seed(3)
    return lpd_tiny(vqgan_vocab_size=CODES, class_num=classes).eval()


def published_tokenizer() -> VQModel:
    """A small tokenizer of the published stride."""
    torch.manual_seed(4)
    model = VQModel(CODES, 4, 32, (1,) * 5, (1,) * 5, num_res_blocks=1, z_channels=32)
    return model.eval().requires_grad_(False)


def saved(content: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def publish(hub: Hub, classes: int = 1000) -> None:
    """The weights, the tokenizer and the orders."""
    weights = saved({"model": published_lpd(classes).state_dict()})
    hub.add("mit-han-lab/lpd_l_256", lpd_l_256__pth=weights, README__md=b"# LPD")
    tokenizer = published_tokenizer()
    content = saved({"model": tokenizer.state_dict(), "config": tokenizer.config})
    hub.add("FoundationVision/LlamaGen", vq_ds16_c2i__pt=content, c2i_B_256__pt=b"a" * 2000)
    orders = random_orders(20, 256, seed=5).astype(np.int64).tolist()
    hub.add("mit-han-lab/lpd_orders", **{f"{STEPS20}__json": json.dumps(orders).encode()})
