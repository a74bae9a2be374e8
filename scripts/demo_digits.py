"""The digits of the demo: make the data set, train its feature extractor, judge the samples.

    python scripts/demo_digits.py prepare --output DIR
    python scripts/demo_digits.py features --data DIR --output digits_features.pt
    python scripts/demo_digits.py report --data DIR --samples SAMPLES --metrics metrics.json \
        --grid samples.png

The images are scikit-learn's handwritten digits (1,797 of 8 x 8, values 0..16), so that the demo
needs no download.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.image_folder import ImageBatch, ImageList, image_batches, list_images
from evaluation.digits import DigitsClassifier
from hub.weights import atomic_save
from util import logs
from util.cli import Parser, add_flags
from util.errors import UserError, blame, require_writable_folder, run
from util.files import read_json, write_json
from util.images import save_grid, save_png
from util.streams import torch_seed

logger = logging.getLogger(__name__)

CLASSES = tuple("0123456789")
IMAGE_SIZE = 32
EPOCHS, BATCH_SIZE = 30, 64
MAX_SHIFT = 2  # of a training image in each direction, pixels


def main(argv: list[str] | None = None) -> None:
    """Run a sub-command."""
    parser = Parser(description="The digits of the demo: data set, feature extractor, report.")
    commands = parser.add_subparsers(required=True)
    about = {
        "data": "the folder `prepare` wrote",
        "output": "folder for train/<digit>/ and test/<digit>/, or file for the weights",
        "samples": "folder of 00000.png ..., sorted by class",
        "metrics": "JSON file to add the accuracies to",
        "grid": "PNG file for ten samples of every class",
    }
    for work, title, flags in (
        (prepare, "write the digits as an image folder of PNGs", "output"),
        (features, "train the classifier that serves as extractor", "data output"),
        (report, "judge generated digits by an SVM on real ones", "data samples metrics grid"),
    ):
        sub = commands.add_parser(work.__name__, help=title)
        for name in flags.split():
            sub.add_argument(f"--{name}", type=Path, required=True, help=about[name])
        add_flags(sub, "--debug")
        sub.set_defaults(work=work)
    args = parser.parse_args(argv)
    args.work(args)


def prepare(args: argparse.Namespace) -> None:
    """Write train/<digit>/NNNN.png (1,437) and test/<digit>/NNNN.png (360), numbered as they are.

    Values are scaled by 255/16 and rounded, the 8 x 8 images enlarged with Pillow's BICUBIC; the
    three channels are equal.
    """
    output, digits = require_writable_folder(args.output, "--output"), load_digits()
    split = {"test_size": 0.2, "stratify": digits.target, "random_state": 0}
    parts = train_test_split(np.arange(len(digits.target)), **split)
    for part, numbers in zip(("train", "test"), parts, strict=True):
        for number in logs.progress(numbers, desc=part, unit="image"):
            pixels = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
            path = output / part / str(digits.target[number]) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(np.asarray(image.convert("RGB")), path)
    logger.info("%d training and %d test images in %s", *map(len, parts), output)


def features(args: argparse.Namespace) -> None:
    """Train the classifier on the training part, in a few seconds; measure it on the test part."""
    (images, labels), test = read_part(args.data, "train"), read_part(args.data, "test")
    require_writable_folder(args.output.parent, "--output")
    torch.manual_seed(torch_seed("digits classifier", 0))
    model = DigitsClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = EPOCHS * -(-len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in logs.progress(range(EPOCHS), desc="digits classifier", unit="epoch"):
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            # Shifts are what lifts it from about 98 % to above 99 %.
            top, left = torch.randint(0, 2 * MAX_SHIFT + 1, (2,)).tolist()
            shifted = functional.pad(images[chosen], (MAX_SHIFT,) * 4)  # with black
            _, logits = model(shifted[..., top:, left:][..., :IMAGE_SIZE, :IMAGE_SIZE])
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval().requires_grad_(False)
    correct = model(test.images)[1].argmax(dim=1) == test.labels
    logger.info("the classifier recognises %.1f %% of the test part", 100 * correct.float().mean())
    with blame("--output"):
        atomic_save({"model": model.state_dict()}, args.output)


def report(args: argparse.Namespace) -> None:
    """Add the judge's accuracies to the metrics, and write the grid of samples."""
    with blame("--metrics"):
        metrics = read_json(args.metrics)
    require_writable_folder(args.grid.parent, "--grid")
    count = len(list(args.samples.glob("*.png")))
    if count == 0 or count % len(CLASSES):
        expected = "expected a multiple of 10"
        raise UserError(f"--samples: {args.samples} holds {count} PNG files, {expected}")
    paths = tuple(args.samples / f"{image_id:05d}.png" for image_id in range(count))
    images = ImageList(paths, np.arange(count) * len(CLASSES) // count, CLASSES)
    with blame("--samples"):
        samples = next(image_batches(images, IMAGE_SIZE, [np.arange(count)]))
    judge = train_judge(*read_part(args.data, "train"))
    generated, real = judge.score(*samples), judge.score(*read_part(args.data, "test"))
    metrics |= {"class_accuracy_generated": generated, "class_accuracy_real_test": real}
    by_class = samples.images.unflatten(0, (len(CLASSES), -1))[:, :10]
    with blame("--grid"):
        pixels = by_class.flatten(0, 1).permute(0, 2, 3, 1)
        save_grid(pixels, args.grid, columns=by_class.shape[1])
    with blame("--metrics"):
        write_json(metrics, args.metrics)
    judged = "recognised by the judge: %.1f %% of %d generated digits"
    counts = 100 * generated, count, 100 * real
    logger.info(f"{judged}, %.1f %% of the real test digits", *counts)


def train_judge(images: Tensor, labels: Tensor) -> Pipeline:
    """Fit an SVM that judges images (n, 3, 32, 32) uint8 and is no relative of the extractor."""
    return make_pipeline(FunctionTransformer(to_digits), SVC(gamma=0.001)).fit(images, labels)


def to_digits(images: Tensor) -> np.ndarray:
    """Average images (n, 3, 32, 32) uint8 to 8 x 8 and scale them to 0..16: (n, 64) float32."""
    small = functional.avg_pool2d(images.float().mean(dim=1, keepdim=True), IMAGE_SIZE // 8)
    return (small.flatten(start_dim=1) * (16 / 255)).numpy()


def read_part(data: str | Path, part: str) -> ImageBatch:
    """Read images (n, 3, 32, 32) uint8 and labels (n,) int64 of DIR/train or DIR/test."""
    return read_folder(Path(data) / part, CLASSES, IMAGE_SIZE)


def read_folder(folder: Path, classes: tuple[str, ...], size: int) -> ImageBatch:
    """Read all images of `--data`'s folder, (n, 3, size, size) uint8, and their labels."""
    images = list_images(folder, "--data")
    if images.classes != classes:
        found, expected = ", ".join(images.classes), ", ".join(classes)
        raise UserError(f"--data: {folder} holds the classes {found}, expected {expected}")
    with blame("--data"):
        return next(image_batches(images, size, [np.arange(len(images))]))


if __name__ == "__main__":
    run(main)
