"""The crops of the study on natural images, from the two photographs that scikit-learn brings.

    python scripts/evidence/photographs.py --output DIR

writes DIR/train/<photograph>/, DIR/test/<photograph>/ and DIR/held_out/<photograph>/: crops of
64 x 64 pixels, for training one every --spacing pixels in both directions of the left 448 columns,
and of the other 192 the 18 disjoint ones to test on and one every --spacing to judge samples by.
"""

import sys
from itertools import product
from pathlib import Path

from sklearn.datasets import load_sample_image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, require_writable_folder, run
from util.images import save_png

PHOTOGRAPHS = ("china", "flower")  # each 427 x 640
SIDE = 64


def main(argv: list[str] | None = None) -> None:
    """Write all parts."""
    parser = Parser(description="Crops of scikit-learn's two photographs, some held out.")
    parser.add_argument("--output", required=True, help="folder for train/, test/ and held_out/")
    about = "pixels between overlapping crops"
    parser.add_argument("--spacing", type=whole(1), default=10, help=about)
    add_flags(parser, "--debug")
    args = parser.parse_args(argv)
    output = require_writable_folder(args.output, "--output")
    if any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty, expected a new folder")
    for name in logs.progress(PHOTOGRAPHS, desc="crops", unit="photograph"):
        photograph = load_sample_image(f"{name}.jpg")
        left, right = photograph[:, :448], photograph[:, 448:]
        parts = ("train", left, args.spacing), ("held_out", right, args.spacing)
        for part, pixels, spacing in (*parts, ("test", right, SIDE)):
            folder = output / part / name
            folder.mkdir(parents=True)
            height, width = pixels.shape[:2]
            corners = product(*(range(0, end - SIDE + 1, spacing) for end in (height, width)))
            for number, (top, side) in enumerate(corners):
                save_png(pixels[top : top + SIDE, side : side + SIDE], folder / f"{number:04d}.png")


if __name__ == "__main__":
    run(main)
