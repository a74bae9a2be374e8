"""The tables of docs/evidence.md, from the JSON files of the studies.

    python scripts/evidence/tables.py nll docs/evidence/digits_[123].json
    python scripts/evidence/tables.py prices docs/evidence/digits_[123].json
    python scripts/evidence/tables.py alone docs/evidence/digits_[123].json
    python scripts/evidence/tables.py against docs/evidence/digits_1.json \\
        docs/evidence/digits_blind_1.json
    python scripts/evidence/tables.py each docs/evidence/digits_[123].json --orders lpd random
    python scripts/evidence/tables.py samples docs/evidence/digits_samples_[123].json
    python scripts/evidence/tables.py yardsticks docs/evidence/digits_samples_1.json
    python scripts/evidence/tables.py search docs/evidence/digits_search.json

`nll`: nats an image, and differences to the order that --minus names. `prices`: the price of
parallelism alike. `alone`: nats of the same orders one token at a time; differences with --minus.
`against`: by how much the second half of the models exceeds the first, image by image. `each`: the
differences of `nll`, model by model. `samples`: judged samples. `yardsticks`: what real images
score as samples do. `search`: the best candidates, repulsion alone, and the worst.

Files of one model, measured alike, are taken together; models (one for each training seed) are
averaged. Standard errors are over images, of each image's average over the models.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.evidence.studies import (
    Key,
    Study,
    by_image,
    choose_orders,
    choose_steps,
    join,
    of_class,
    read_json,
    read_study,
)
from studies.likelihood import Estimate
from studies.search import REPULSION_ALONE
from util.cli import Parser, add_flags
from util.errors import UserError, run

Cell = Callable[[Key], str]
# Title, order, and what a cell holds.
Column = tuple[str, str, Cell]

TABLES = ("nll", "prices", "alone", "against", "each", "samples", "yardsticks", "search")
# Which tables heed a flag.
HEEDED = {
    "orders": TABLES[:6],
    "minus": ("nll", "prices", "alone", "each"),
    "class_name": TABLES[:5],
}
# Of the candidates of a search.
SHOWN = 5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Markdown tables from the JSON files of the studies.")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("files", nargs="+", type=Path, help="JSON files, of one model or several")
    parser.add_argument("--orders", nargs="+", metavar="ORDER", help="by default all")
    parser.add_argument("--minus", metavar="ORDER", help="by default the first order")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="its images only")
    add_flags(parser, "--debug")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the table to standard output."""
    for name, tables in HEEDED.items():
        if getattr(args, name) is not None and args.table not in tables:
            flag = name.removesuffix("_name")
            raise UserError(
                f"--{flag}: found with {args.table}, expected with one of {', '.join(tables)}"
            )
    if args.table == "search":
        lines = search_table(args.files)
    elif args.table == "yardsticks":
        lines = yardsticks_table(args.files)
    else:
        lines = study_table(args)
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def study_table(args: argparse.Namespace) -> Iterator[str]:
    """Steps by orders, of all models."""
    studies = join(map(read_study, args.files))
    if args.class_name is not None:
        studies = [of_class(study, args.class_name) for study in studies]
    orders = choose_orders(studies, args.orders)
    minus = args.minus or orders[0]
    if minus not in orders:
        raise UserError(f"--minus: found {minus}, expected one of {', '.join(orders)}")
    if args.table == "nll":
        columns = cost_columns(studies, orders, minus, "nll")
    elif args.table == "prices":
        columns = cost_columns(studies, orders, minus, "price")
    elif args.table == "alone":
        columns = alone_columns(studies, orders, args.minus)
    elif args.table == "against":
        columns = against_columns(studies, orders)
    elif args.table == "each":
        columns = each_columns(studies, orders, minus)
    else:
        columns = samples_columns(studies, orders)
    return rows(choose_steps(studies, orders), columns)


def cost_columns(
    studies: Sequence[Study], orders: Sequence[str], minus: str, what: str
) -> list[Column]:
    """Nats an image or their price, then the differences to one order's."""

    def cost(key: Key) -> str:
        return str(Estimate.of(by_image(studies, key, what)))

    def difference(key: Key) -> str:
        less = by_image(studies, (key[0], minus), what)
        return str(Estimate.of(by_image(studies, key, what) - less))

    columns = [(order, order, cost) for order in orders]
    return columns + [
        (f"{order} - {minus}", order, difference) for order in orders if order != minus
    ]


def alone_columns(
    studies: Sequence[Study], orders: Sequence[str], minus: str | None
) -> list[Column]:
    """Nats an image of each order one token at a time: means and, of several models, ranges.

    Differences to another order, with their errors, are there if they are asked for.
    """

    def alone(chosen: Sequence[Study], key: Key) -> np.ndarray:
        return by_image(chosen, key) - by_image(chosen, key, "price")

    def mean(key: Key) -> str:
        return spread([alone([study], key).mean() for study in studies], digits=2)

    def difference(key: Key) -> str:
        return str(Estimate.of(alone(studies, key) - alone(studies, (key[0], minus))))

    columns = [(order, order, mean) for order in orders]
    if minus is not None:
        others = [order for order in orders if order != minus]
        columns += [(f"{order} - {minus}", order, difference) for order in others]
    return columns


def against_columns(studies: Sequence[Study], orders: Sequence[str]) -> list[Column]:
    """Nats an image of the second half of the models, and by how much they exceed the first's."""
    if len(studies) % 2:
        raise UserError(
            f"files: found {len(studies)} models, expected as many of one as of the other"
        )
    first, second = studies[: len(studies) // 2], studies[len(studies) // 2 :]

    def nll(key: Key) -> str:
        return str(Estimate.of(by_image(second, key)))

    def difference(key: Key) -> str:
        return str(Estimate.of(by_image(second, key) - by_image(first, key)))

    columns = [(order, order, nll) for order in orders]
    return columns + [(f"{order}, minus the first model", order, difference) for order in orders]


def each_columns(studies: Sequence[Study], orders: Sequence[str], minus: str) -> list[Column]:
    """Differences to one order, of each model by itself."""
    columns = [
        (cost_columns([study], orders, minus, "nll")[len(orders) :], study.path.stem)
        for study in studies
    ]
    return [
        (f"{title}, {name}", order, cell) for own, name in columns for title, order, cell in own
    ]


def samples_columns(studies: Sequence[Study], orders: Sequence[str]) -> list[Column]:
    """Class accuracy and Frechet distance, means and, of several models, ranges."""

    def judged(name: str, factor: float) -> Cell:
        return lambda key: spread([factor * study.results[key][name] for study in studies], 1)

    accuracy, distance = judged("class_accuracy", 100), judged("frechet_distance", 1)
    columns = [(f"{order}, accuracy, %", order, accuracy) for order in orders]
    return columns + [(f"{order}, Frechet distance", order, distance) for order in orders]


def search_table(paths: Sequence[Path]) -> Iterator[str]:
    """Candidates on the images that chose among them, and the best on the others.

    Shown are the best, the best without a proximity pass, and the worst.
    """
    yield "| steps | images | rank | repulsion | proximity | sizes | nats | minus published |"
    yield "|---" * 8 + "|"
    for path in paths:
        searches = read_json(path).get("searches")
        if not searches:
            raise UserError(f"files: {path} holds no searches, expected some")
        for found in searches:
            tried = list(enumerate(found["candidates"], start=1))
            alone = [pair for pair in tried if pair[1]["proximity"] >= REPULSION_ALONE]
            chosen = dict([*tried[:SHOWN], *alone[:1], tried[-1]])
            halves = [("chosen on", rank, each) for rank, each in chosen.items()]
            for half, rank, each in [*halves, ("the others", 1, found["best"])]:
                nll = Estimate(each["nll"], each["nll_se"])
                less = Estimate(each["minus_published"], each["minus_published_se"])
                candidate = (
                    f"{rank} | {each['repulsion']:g} | {each['proximity']:g} | {each['shape']}"
                )
                yield f"| {found['steps']} | {half} | {candidate} | {nll} | {less} |"


def yardsticks_table(paths: Sequence[Path]) -> Iterator[str]:
    """Class accuracy and Frechet distances of real images: as they are, and reconstructed."""
    studies = join(map(read_study, paths))
    files = [study.about for study in studies]
    titles = {
        "class_accuracy": "accuracy, %",
        "frechet_distance": "Frechet distance",
        "frechet_distance_held_out": "to held-out crops",
    }
    if any(not {"real", "reconstructed"} <= file.keys() for file in files):
        raise UserError("files: found no real and reconstructed, expected them of every file")
    names = [name for name in titles if all(name in file["real"] for file in files)]
    yield f"| images | {' | '.join(titles[name] for name in names)} |"
    yield "|---" * (1 + len(names)) + "|"
    for images in ("real", "reconstructed"):
        found = {name: [file[images][name] for file in files] for name in names}
        found["class_accuracy"] = [100 * share for share in found["class_accuracy"]]
        yield f"| {images} | {' | '.join(spread(found[name], digits=1) for name in names)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Their mean and, of several, their range."""
    low, mean, high = (f"{found(values):.{digits}f}" for found in (min, np.mean, max))
    return mean if len(values) == 1 else f"{mean} ({low}-{high})"


def rows(counts: Sequence[int], columns: Sequence[Column]) -> Iterator[str]:
    """A Markdown table with a line for every number of steps."""
    yield f"| steps | {' | '.join(title for title, _, _ in columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for steps in counts:
        cells = [cell((steps, order)) for _, order, cell in columns]
        yield f"| {steps} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run(lambda: main(parse_args()))
