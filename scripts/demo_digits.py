"""The digits of the demo: make the data set, train its feature extractor, judge the samples.

    python scripts/demo_digits.py prepare --output DIR
    python scripts/demo_digits.py features --data DIR --output digits_features.pt
    python scripts/demo_digits.py report --data DIR --samples SAMPLES --metrics metrics.json \
        --grid samples.png

The images are scikit-learn's handwritten digits (1,797 of 8 x 8, values 0..16), so that the demo
needs no download.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.image_folder import ImageList, image_batches, list_images
from evaluation.digits import DigitsClassifier
from evaluation.metrics import feature_statistics, save_reference
from hub.weights import atomic_save
from util import logs
from util.cli import Parser, add_flags
from util.errors import UserError, blame, require_file, require_writable_folder, run
from util.files import write_json
from util.images import save_grid, save_png
from util.streams import torch_seed

logger = logging.getLogger(__name__)

NUM_CLASSES = 10
IMAGE_SIZE = 32
EPOCHS = 30
BATCH_SIZE = 64
PEAK_LR = 4e-3
# Furthest shift of a training image in each direction, pixels.
MAX_SHIFT = 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: a sub-command with its flags, and the function that runs it."""
    parser = Parser(description="The digits of the demo: data set, feature extractor, report.")
    commands = parser.add_subparsers(dest="command", required=True)

    sub = commands.add_parser("prepare", help="write the digits as an image folder of 32 x 32 PNGs")
    sub.add_argument("--output", required=True, help="folder for train/<digit>/ and test/<digit>/")
    sub.set_defaults(run=lambda args: prepare(require_writable_folder(args.output, "--output")))

    sub = commands.add_parser("features", help="train the classifier that serves as extractor")
    sub.add_argument("--data", required=True, help="the folder `prepare` wrote")
    sub.add_argument("--output", type=Path, required=True, help="file for the classifier's weights")
    about = ".npz file for mu and sigma of the test part's features"
    sub.add_argument("--stats", type=Path, help=about)
    add_flags(sub, "--seed", help="seed of the training")
    sub.set_defaults(run=features)

    sub = commands.add_parser("report", help="judge generated digits by an SVM on real ones")
    sub.add_argument("--data", required=True, help="the folder `prepare` wrote")
    sub.add_argument("--samples", required=True, help="folder of 00000.png ..., sorted by class")
    sub.add_argument("--metrics", required=True, help="JSON file to add the accuracies to")
    sub.add_argument("--grid", required=True, help="PNG file for ten samples of every class")
    sub.set_defaults(run=report)

    for sub in commands.choices.values():
        add_flags(sub, "--debug")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Run the sub-command."""
    args.run(args)


def prepare(output: Path) -> None:
    """Write the data set: train/<digit>/NNNN.png (1,437) and test/<digit>/NNNN.png (360).

    Values are scaled by 255/16, rounded to the nearest integer (ties to even), and the 8 x 8
    images enlarged to 32 x 32 with Pillow's BICUBIC; the three channels are equal. NNNN is the
    image's number in scikit-learn's data set.
    """
    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    for part, numbers in zip(("train", "test"), parts, strict=True):
        for number in logs.progress(numbers, desc=part, unit="image"):
            pixels = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
            path = output / part / str(digits.target[number]) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(np.asarray(image.convert("RGB")), path)
    logger.info("%d training and %d test images in %s", *map(len, parts), output)


def features(args: argparse.Namespace) -> None:
    """Train the classifier on the training part; measure it and its statistics on the test part."""
    train, test = read_part(args.data, "train"), read_part(args.data, "test")
    for flag, path in (("--output", args.output), ("--stats", args.stats)):
        if path is not None:
            require_writable_folder(path.parent, flag)
    model = train_digits_classifier(*train, seed=args.seed)
    with torch.no_grad():
        test_features, logits = model(test[0])
    correct = logits.argmax(dim=1) == test[1]
    logger.info("the classifier recognises %.1f %% of the test part", 100 * correct.float().mean())
    with blame("--output"):
        atomic_save({"model": model.state_dict()}, args.output)
    if args.stats is not None:
        with blame("--stats"):
            save_reference({"pool": feature_statistics(test_features)}, args.stats)


def train_digits_classifier(images: Tensor, labels: Tensor, seed: int = 0) -> DigitsClassifier:
    """Train the demo's feature extractor on images (n, 3, 32, 32) uint8, in a few seconds.

    Shifting each batch by up to two pixels is what lifts it from about 98 % to above 99 %.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed("digits classifier", seed))
        model = DigitsClassifier()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        steps = EPOCHS * -(-len(images) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
        bar = logs.progress(range(EPOCHS), desc="digits classifier", unit="epoch")
        for _ in bar:
            for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
                top, left = torch.randint(0, 2 * MAX_SHIFT + 1, (2,)).tolist()
                shifted = functional.pad(images[chosen], (MAX_SHIFT,) * 4)  # with black
                _, logits = model(shifted[..., top:, left:][..., :IMAGE_SIZE, :IMAGE_SIZE])
                loss = functional.cross_entropy(logits, labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval().requires_grad_(False)


def report(args: argparse.Namespace) -> None:
    """Add the judge's accuracies to the metrics, and write the grid of samples."""
    file = require_file(args.metrics, "--metrics", "the JSON file an evaluation wrote")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--metrics: {file} is not JSON ({error}), expected an object") from error
    if not isinstance(metrics, dict):
        raise UserError(f"--metrics: {file} holds a {type(metrics).__name__}, expected an object")
    for flag, path in (("--metrics", file), ("--grid", Path(args.grid))):
        require_writable_folder(path.parent, flag)
    samples, labels = read_samples(Path(args.samples))
    judge = train_judge(*read_part(args.data, "train"))
    generated = accuracy(judge, samples, labels)
    real = accuracy(judge, *read_part(args.data, "test"))
    metrics |= {"class_accuracy_generated": generated, "class_accuracy_real_test": real}

    by_class = samples.unflatten(0, (NUM_CLASSES, -1))[:, :10]
    with blame("--grid"):
        pixels = by_class.flatten(0, 1).permute(0, 2, 3, 1)
        save_grid(pixels, args.grid, columns=by_class.shape[1])
    with blame("--metrics"):
        write_json(metrics, file)
    line = (
        "recognised by the judge: %.1f %% of %d generated digits, %.1f %% of the real test digits"
    )
    logger.info(line, 100 * generated, len(samples), 100 * real)


def train_judge(images: Tensor, labels: Tensor) -> SVC:
    """Fit the judge: an SVM on 8 x 8 digits, which shares nothing with the feature extractor."""
    return SVC(gamma=0.001).fit(to_digits(images), labels.numpy())


def accuracy(judge: SVC, images: Tensor, labels: Tensor) -> float:
    """Measure the share of images (n, 3, 32, 32) uint8 that the judge gives their label."""
    return float(judge.score(to_digits(images), labels.numpy()))


def to_digits(images: Tensor) -> np.ndarray:
    """Average images (n, 3, 32, 32) uint8 to 8 x 8 and scale them to 0..16: (n, 64) float32."""
    small = functional.avg_pool2d(images.float().mean(dim=1, keepdim=True), IMAGE_SIZE // 8)
    return (small.flatten(start_dim=1) * (16 / 255)).numpy()


def read_part(data: str | Path, part: str) -> tuple[Tensor, Tensor]:
    """Read images (n, 3, 32, 32) uint8 and labels (n,) int64 of DIR/train or DIR/test."""
    images = list_images(Path(data) / part, "--data")
    if images.classes != tuple(map(str, range(NUM_CLASSES))):
        raise UserError(
            f"--data: {data}/{part} holds the classes {', '.join(images.classes)}, expected 0 to 9"
        )
    with blame("--data"):
        return _read(images)


def read_samples(folder: Path) -> tuple[Tensor, Tensor]:
    """Read generated images (n, 3, 32, 32) uint8, sorted by class, and their labels (n,) int64."""
    if not folder.is_dir():
        raise UserError(f"--samples: {folder} is not a folder, expected one of PNG files")
    paths = sorted(folder.glob("*.png"))
    count = len(paths)
    if count == 0 or count % NUM_CLASSES:
        raise UserError(
            f"--samples: {folder} holds {count} PNG files, expected a multiple of {NUM_CLASSES}"
        )
    for image_id, path in enumerate(paths):
        if path.name != f"{image_id:05d}.png":
            raise UserError(f"--samples: found {path}, expected {image_id:05d}.png in its place")
    labels = np.arange(count, dtype=np.int64) // (count // NUM_CLASSES)
    with blame("--samples"):
        return _read(ImageList(tuple(paths), labels, tuple(map(str, range(NUM_CLASSES)))))


def _read(images: ImageList) -> tuple[Tensor, Tensor]:
    batch = next(image_batches(images, IMAGE_SIZE, [np.arange(len(images))]))
    return batch.images, batch.labels


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
