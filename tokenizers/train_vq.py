"""Train a VQ tokenizer on an image folder: writes vq.pt, reconstructions.png and scalars."""

import argparse
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.batches import epoch_samples
from dataset.image_folder import ImageList, image_batches, list_images
from hub.weights import plain_flags
from tokenizers.vq_loss import vq_losses
from tokenizers.vq_model import USAGE_RECORD, VectorQuantizer, VQModel, save_tokenizer
from training.recipe import LRSchedule
from training.scalars import ScalarLog
from util import distributed, errors, logs, streams
from util.cli import Parser, add_flags, number, share, whole
from util.errors import UserError, blame
from util.folder_lock import folder_lock
from util.images import save_grid, to_float, to_uint8
from util.run_record import record_run

logger = logging.getLogger(__name__)

# Data sets up to this size are decoded once and kept in memory.
IN_MEMORY_BYTES = 10**9
MAX_GRAD_NORM = 1.0
LOG_EVERY = 20
SHOWN_IMAGES = 32


def build_parser() -> Parser:
    """Declare the flags; the defaults are the published tokenizer's sizes."""
    parser = Parser(description="Train a VQ tokenizer on an image folder.")
    group = parser.add_argument_group("data")
    add_flags(group, "--data_path", default=None, required=True)
    add_flags(group, "--img_size", "--flip_prob", "--num_workers")
    group = parser.add_argument_group("model")
    for name, default, means in (
        ("--codebook_size", 16384, "number of codes"),
        ("--codebook_embed_dim", 8, "dimensions of a code"),
        ("--ch", 128, "base width, a multiple of 32"),
        ("--num_res_blocks", 2, "per encoder level"),
        ("--z_channels", 256, "width around the codebook"),
    ):
        group.add_argument(name, type=whole(1), default=default, help=means)
    group.add_argument(
        "--ch_mult",
        type=whole(1),
        nargs="+",
        default=[1, 1, 2, 2, 4],
        help="width of each level in units of --ch, finest first; n levels: stride 2**(n-1)",
    )
    group = parser.add_argument_group("training")
    add_flags(group, "--batch_size", default=16, help="images per process and step")
    add_flags(group, "--epochs", default=40)
    revival = "share of the run in which unused codes are moved to where latents are; 0 for never"
    for name, kind, default, means in (
        ("--lr", number(), 1e-4, "peak; one epoch up, cosine to 0"),
        ("--weight_decay", number(), 0.05, "of all weights"),
        ("--commitment", number(), 0.25, "weight of that loss"),
        ("--entropy_ratio", number(), 0.0, "weight of that loss"),
        ("--revive_until", share(), 0.5, revival),
    ):
        group.add_argument(name, type=kind, default=default, help=means)
    add_flags(group, "--bf16", "--device", "--seed", "--output_dir")
    group.add_argument(
        "--overwrite", action="store_true", help="replace the vq.pt that --output_dir holds"
    )
    add_flags(group, "--debug")
    distributed.add_distributed_flags(parser)
    return parser


def build_model(args: argparse.Namespace) -> VQModel:
    """Initialise a tokenizer, the same for the same seed, or raise UserError."""
    torch.manual_seed(streams.torch_seed("vq init", args.seed))
    with blame("--codebook_size, --codebook_embed_dim, --ch, --ch_mult, ..."):
        model = VQModel(
            *(args.codebook_size, args.codebook_embed_dim, args.ch, args.ch_mult, args.ch_mult),
            *(args.num_res_blocks, args.z_channels),
        )
    if args.img_size % model.stride:
        expected = f"expected a multiple of the stride {model.stride} that --ch_mult makes"
        raise UserError(f"--img_size: found {args.img_size}, {expected}")
    return model


def picture_reader(
    images: ImageList, image_size: int, num_workers: int
) -> Callable[[Iterable[np.ndarray]], Iterator[Tensor]]:
    """Return what yields (B, 3, S, S) uint8 of each array of sample indices."""

    def decode(batches: Iterable[np.ndarray]) -> Iterator[Tensor]:
        for loaded in image_batches(images, image_size, batches, num_workers):
            yield loaded.images

    if len(images) * 3 * image_size**2 > IN_MEMORY_BYTES:
        return decode
    every = np.array_split(np.arange(len(images)), math.ceil(len(images) / 256))
    kept = torch.cat(list(decode(logs.progress(every, desc="read images"))))
    return lambda batches: (kept[torch.from_numpy(batch)] for batch in batches)


@torch.no_grad()
def revive_unused_codes(quantizer: VectorQuantizer, latents: Tensor, seed: int, step: int) -> None:
    """Move the codes missing from the (full) usage record to random ones of `latents` (..., E).

    Codes that start far from all latents are never chosen and so never learn.
    """
    codebook = quantizer.embedding.weight
    uses = torch.bincount(quantizer.codebook_used.long(), minlength=len(codebook))
    latents = latents.detach().reshape(-1, latents.shape[-1])
    unused = (uses == 0).nonzero().flatten()[: len(latents)]
    chosen = streams.permutations("vq revive", seed, step, count=len(latents))[0, : len(unused)]
    codebook[unused] = latents[torch.from_numpy(chosen).to(latents.device)]
    if dist.is_initialized():  # the first process decides for all
        dist.broadcast(codebook, src=0)


def train(
    args: argparse.Namespace, model: VQModel, data: ImageList, device: torch.device, folder: Path
) -> None:
    """Run all epochs; vq.pt in `folder` is the tokenizer as it is after each."""
    count, processes, quantizer = len(data), distributed.world_size(), model.quantize
    with blame("--data_path"):
        read = picture_reader(data, args.img_size, args.num_workers)
    batch_size = min(args.batch_size, count // processes)
    if batch_size < 1:
        expected = f"expected at least one for each of {processes} processes"
        raise UserError(f"--data_path: found {count} images, {expected}")
    steps = count // (batch_size * processes)
    network: nn.Module = model
    if dist.is_initialized():
        network = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay
    )
    schedule = LRSchedule("cosine", args.lr, 0.0, args.epochs, 1, 0)
    revive_every = math.ceil(USAGE_RECORD / (batch_size * (args.img_size // model.stride) ** 2))
    last_revival = args.revive_until * args.epochs * steps
    scalars = ScalarLog(folder if distributed.is_main() else None)

    for epoch in range(args.epochs):
        model.train()
        batches = epoch_samples(count, epoch, batch_size, args.seed, "vq order")
        batches = batches[:, distributed.rank()]
        desc = f"epoch {epoch} of {args.epochs}"
        bar = logs.progress(read(batches), total=steps, desc=desc, unit="step")
        for step, (indices, images) in enumerate(zip(batches, bar, strict=True), epoch * steps):
            flips = streams.uniforms("vq flip", args.seed, epoch, indices, count=1) < args.flip_prob
            flips = torch.from_numpy(flips).view(-1, 1, 1, 1)
            inputs = to_float(torch.where(flips, images.flip(-1), images).to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                result = network(inputs)
            codebook = quantizer.codes()
            losses = vq_losses(inputs, result, codebook, args.commitment, args.entropy_ratio)
            optimizer.zero_grad()
            losses.total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            lr = schedule.at(step / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            quantizer.record_usage(result.indices)
            if (step + 1) % revive_every == 0 and step + 1 <= last_revival:
                revive_unused_codes(quantizer, result.latents, args.seed, step + 1)
            if step % steps % LOG_EVERY == 0:
                values = {f"loss/{name}": value.item() for name, value in vars(losses).items()}
                if not all(map(math.isfinite, values.values())):
                    found = f"the losses are {values} in epoch {epoch}, step {step % steps}"
                    expected = "expected finite numbers (a smaller --lr may help)"
                    raise UserError(f"training: {found}, {expected}")
                values |= {"lr": lr, "codes_used": len(quantizer.codebook_used.unique())}
                scalars.add(step, values)
                bar.set_postfix(mse=f"{values['loss/reconstruction']:.5f}", refresh=False)
        if distributed.is_main():
            with blame("--output_dir"):
                save_tokenizer(folder / "vq.pt", model, epoch=epoch, args=plain_flags(args))

    if distributed.is_main():
        with blame("--output_dir"):
            shown = np.linspace(0, count - 1, min(SHOWN_IMAGES, count)).astype(np.int64)
            (images,) = read([shown])
            psnr = show_reconstructions(model, images, folder / "reconstructions.png")
        scalars.add(args.epochs * steps, {"psnr": psnr})
    scalars.close()
    distributed.gather(None)  # none ends before rank 0 has written


@torch.no_grad()
def show_reconstructions(model: VQModel, images: Tensor, path: Path) -> float:
    """Write images beside their reconstructions; return and log their PSNR, dB."""
    model.eval()
    device = model.quantize.embedding.weight.device
    indices = model.encode_indices(to_float(images.to(device)))
    decoded = to_uint8(model.decode_code(indices)).cpu()
    images = images.permute(0, 2, 3, 1)
    mse = (images.double() - decoded.double()).square().mean().item()
    psnr = 10 * math.log10(255**2 / max(mse, 1e-12))
    used = len(model.quantize.codebook_used.unique())
    logger.info("PSNR %.2f dB, %d of %d codes in use", psnr, used, model.codebook_size)
    save_grid(torch.stack([images, decoded], dim=1).flatten(0, 1), path, columns=8)
    return psnr


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args, launch)
    model, images = build_model(args).to(device), list_images(args.data_path)
    folder = errors.require_writable_folder(args.output_dir, "--output_dir")

    def begin() -> None:
        """Take the output folder, on rank 0, until `at_exit` is left."""
        if distributed.is_main():
            with blame("--output_dir"):
                at_exit.enter_context(folder_lock(folder, "tokenizer"))
            if (folder / "vq.pt").exists() and not args.overwrite:
                expected = "another folder, or --overwrite (caches made with it will be refused)"
                raise UserError(f"--output_dir: {folder} holds vq.pt, expected {expected}")
            with blame("--output_dir"):
                record_run(parser, args, folder)

    with ExitStack() as at_exit:
        at_exit.enter_context(distributed.start(launch, device))
        distributed.fail_together(begin)
        train(args, model, images, device, folder)


if __name__ == "__main__":
    errors.run(main)
