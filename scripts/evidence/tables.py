"""The tables of docs/evidence.md, from the JSON files of the studies.

    python scripts/evidence/tables.py nll docs/evidence/digits_[123].json
    python scripts/evidence/tables.py prices docs/evidence/digits_[123].json
    python scripts/evidence/tables.py alone docs/evidence/digits_[123].json
    python scripts/evidence/tables.py against docs/evidence/digits_1.json \\
        docs/evidence/digits_blind_1.json
    python scripts/evidence/tables.py samples docs/evidence/digits_samples_[123].json

`nll`: nats an image, and differences to the order that --minus names. `prices`: the price of
parallelism alike. `alone`: nats of the same orders one token at a time. `against`: by how much the
second half of the models exceeds the first, image by image. `samples`: judged samples.

Files of one model are taken together, models (one for each training seed) averaged. Standard errors
are over images, of each image's average over the models.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from util.cli import Parser
from util.errors import UserError, blame, require_file, run
from util.order_study.study import Estimate

# Steps and order.
Key = tuple[int, str]
Cell = Callable[[Key], str]
# Title, order, and what a cell holds.
Column = tuple[str, str, Cell]

# Tables of what is known of every image.
COSTS = {"nll": "nll", "prices": "price"}
# What the files of a table must have in common, as far as they say it.
COMMON = ("num_images", "num_tokens", "samples", "cfg")
# Which images and which model: by content, or by name where a file does not say that.
IMAGES = ("images_sha256", "cache")
MODEL = ("checkpoint_sha256", "checkpoint")
# How a model was measured.
MEASURED = ("seed", "bf16")


@dataclass(frozen=True)
class Study:
    """What was measured of one model.

    Attributes:
        path: of the JSON file, or the first of several.
        about: its entries beside the results.
        results: of all files.
        chosen: (n,) bool, the images that count; None for all.
    """

    path: Path
    about: dict[str, Any]
    results: dict[Key, dict[str, Any]]
    chosen: np.ndarray | None = None

    def by_image(self, key: Key, what: str = "nll") -> np.ndarray:
        """Nats of each image, (n,), or its price."""
        name = f"{what}_by_image"
        if name not in self.results[key]:
            raise UserError(f"files: {self.path} has no {name}, expected it of every order")
        values = np.array(ast.literal_eval(self.results[key][name]))
        return values if self.chosen is None else values[self.chosen]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Markdown tables from the JSON files of the studies.")
    parser.add_argument("table", choices=["nll", "prices", "alone", "against", "samples"])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files, of one model or several")
    parser.add_argument("--orders", nargs="+", metavar="ORDER", help="by default all")
    parser.add_argument("--minus", metavar="ORDER", help="by default the first order")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="its images only")
    parser.add_argument("--debug", action="store_true", help="show the traceback of bad input")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the table to standard output."""
    studies = join(map(read_study, args.files))
    if args.class_name is not None:
        studies = [of_class(study, args.class_name) for study in studies]
    orders = choose_orders(studies, args.orders)
    if args.minus is not None and args.table not in COSTS:
        raise UserError(f"--minus: found with {args.table}, expected with {' or '.join(COSTS)}")
    if args.table in COSTS:
        columns = cost_columns(studies, orders, args.minus, COSTS[args.table])
    elif args.table == "alone":
        columns = alone_columns(studies, orders)
    elif args.table == "samples":
        columns = samples_columns(studies, orders)
    else:
        columns = against_columns(studies, orders)
    lines = rows(choose_steps(studies, orders), columns)
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def read_study(path: Path) -> Study:
    """One file."""
    require_file(path, "files", "JSON of a study")
    with blame(f"files: {path}"):
        about = json.loads(path.read_text())
    found = about.pop("results", [])
    results = {(entry.get("steps"), entry.get("order")): entry for entry in found}
    if not results or len(results) < len(found):
        raise UserError(
            f"files: {path} holds {len(found)} results of {len(results)} steps and orders, "
            "expected one of each"
        )
    return Study(path, about, results)


def join(studies: Iterable[Study]) -> list[Study]:
    """One study for each model; all must be of the same images."""
    joined: list[Study] = []
    for study in studies:
        if joined:
            require_common(joined[0], study)
        place = next((i for i, known in enumerate(joined) if of_one_model(known, study)), None)
        if place is None:
            joined.append(study)
            continue
        known = joined[place]
        for steps, order in known.results.keys() & study.results.keys():
            raise UserError(
                f"files: {study.path} and {known.path} are of one model and both hold {order} in "
                f"{steps} steps, expected it once"
            )
        joined[place] = replace(known, results={**known.results, **study.results})
    return joined


def require_common(first: Study, study: Study) -> None:
    """Refuse figures that cannot be averaged or subtracted image by image."""
    for name in (*told(first, study, IMAGES)[:1], *told(first, study, COMMON)):
        if first.about[name] != study.about[name]:
            raise UserError(
                f"files: {study.path} has {name} {study.about[name]}, expected "
                f"{first.about[name]} as in {first.path}"
            )


def of_one_model(first: Study, second: Study) -> bool:
    """Whether two files say that they are of the same model, measured alike."""
    model = told(first, second, MODEL)[:1]
    names = [*model, *told(first, second, MEASURED)]
    return bool(model) and all(first.about[name] == second.about[name] for name in names)


def told(first: Study, second: Study, names: Sequence[str]) -> list[str]:
    """Those of the names that both files have."""
    return [name for name in names if name in first.about and name in second.about]


def of_class(study: Study, name: str) -> Study:
    """The images of one class."""
    classes = ast.literal_eval(study.about.get("class_by_image", "[]"))
    if name not in classes:
        known = ", ".join(sorted(set(classes))) or "a file that names its images' classes"
        raise UserError(f"--class: found {name} for {study.path}, expected {known}")
    chosen = np.array([one == name for one in classes])
    if chosen.sum() < 2:
        raise UserError(f"--class: found one image of {name}, expected at least 2")
    return replace(study, chosen=chosen)


def choose_orders(studies: Sequence[Study], wanted: Sequence[str] | None) -> list[str]:
    """Those wanted, or all."""
    every = list(dict.fromkeys(order for study in studies for _, order in study.results))
    for order in wanted or ():
        if order not in every:
            raise UserError(f"--orders: found {order}, expected some of {', '.join(every)}")
    return list(wanted or every)


def choose_steps(studies: Sequence[Study], orders: Sequence[str]) -> list[int]:
    """The numbers of steps in which all orders were measured of all models."""
    needed = [(study, order) for study in studies for order in orders]
    counts = dict.fromkeys(steps for study in studies for steps, _ in study.results)
    found = [k for k in counts if all((k, order) in study.results for study, order in needed)]
    if not found:
        raise UserError(
            f"files: found no number of steps with {', '.join(orders)} of every model, expected one"
        )
    return found


def cost_columns(
    studies: Sequence[Study], orders: Sequence[str], minus: str | None, what: str
) -> list[Column]:
    """Nats an image or their price, then the differences to one order's, by default the first's."""
    minus = orders[0] if minus is None else minus
    if minus not in orders:
        raise UserError(f"--minus: found {minus}, expected one of {', '.join(orders)}")

    def cost(key: Key) -> str:
        return str(Estimate.of(by_image(studies, key, what)))

    def difference(key: Key) -> str:
        less = by_image(studies, (key[0], minus), what)
        return str(Estimate.of(by_image(studies, key, what) - less))

    columns = [(order, order, cost) for order in orders]
    return columns + [
        (f"{order} - {minus}", order, difference) for order in orders if order != minus
    ]


def alone_columns(studies: Sequence[Study], orders: Sequence[str]) -> list[Column]:
    """Nats an image of each order one token at a time: means and, of several models, ranges."""

    def alone(key: Key) -> str:
        nats = [(study.by_image(key) - study.by_image(key, "price")).mean() for study in studies]
        return spread(nats, digits=2)

    return [(order, order, alone) for order in orders]


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


def samples_columns(studies: Sequence[Study], orders: Sequence[str]) -> list[Column]:
    """Class accuracy and Frechet distance, means and, of several models, ranges."""

    def judged(name: str, factor: float) -> Cell:
        return lambda key: spread([factor * study.results[key][name] for study in studies], 1)

    accuracy, distance = judged("class_accuracy", 100), judged("frechet_distance", 1)
    columns = [(f"{order}, accuracy, %", order, accuracy) for order in orders]
    return columns + [(f"{order}, Frechet distance", order, distance) for order in orders]


def by_image(studies: Sequence[Study], key: Key, what: str = "nll") -> np.ndarray:
    """Nats of each image, (n,), or its price, averaged over the models."""
    return np.mean([study.by_image(key, what) for study in studies], axis=0)


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
