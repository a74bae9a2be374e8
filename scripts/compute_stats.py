"""Make the statistics that samples are compared with (`--fid_stats`) from any images.

    python scripts/compute_stats.py --images ./data/imagenet/val --out stats.npz
    torchrun --nproc_per_node 8 scripts/compute_stats.py --images reference.npz --out stats.npz

The .npz holds mu, sigma, mu_s and sigma_s as ADM's do (the latter two are sFID's) and, with
`--features`, what KID, precision and recall compare.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.features import KINDS, build_extractor
from evaluation.image_sources import open_images
from evaluation.metrics import Reference, reference_arrays, save_reference
from evaluation.references import ReferencePlan
from util import distributed
from util.cli import Parser, add_flags
from util.errors import UserError, blame, require_writable_file, run
from util.run_record import record_run

logger = logging.getLogger("lpd")


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(description="Make statistics for --fid_stats from images.")
    parser.add_argument("--images", required=True, help="folder, or ADM-style archive (npz)")
    parser.add_argument("--out", required=True, help="the .npz to write")
    add_flags(parser, "--img_size", help="side of the centre crop of a folder's images, pixels")
    parser.add_argument("--features", action="store_true", help="each image's too, for kid, prc")
    add_flags(parser, "--feature_extractor", choices=KINDS, help="network that scores")
    add_flags(parser, "--batch_size", help="images per process")
    add_flags(parser, "--feature_extractor_weights", "--num_workers", "--device", "--debug")
    distributed.add_distributed_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args, launch)
    out = require_writable_file(args.out, "--out", ".npz")
    size = None if Path(args.images).is_file() else args.img_size
    source = open_images(args.images, "--images", size)
    weights = args.feature_extractor_weights
    extractor = build_extractor(args.feature_extractor, weights, device, spatial=True)
    kind = extractor.kind
    if kind.image_size not in (None, source.image_size):
        expected = f"expected {kind.image_size} for {kind.registered_name}"
        raise UserError(f"--images: found {source.image_size} pixels (--img_size), {expected}")
    with blame("--out"):
        record_run(parser, args, out.parent)
    parts = frozenset(kind.dims) | ({"features"} if args.features else set())
    plan = ReferencePlan(source.path, parts, Reference(), source)
    with distributed.start(launch, device):
        reference = plan.load(extractor, args.batch_size, args.num_workers)
        if reference is not None:
            with blame("--out"):
                save_reference(reference, out)
            names = ", ".join(reference_arrays(reference))
            logger.info("%s of %s images in %s", names, f"{len(source):,}", out)


if __name__ == "__main__":
    run(main)
