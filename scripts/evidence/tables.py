"""The tables of docs/evidence.md, from the JSON files of the studies.

    python scripts/evidence/tables.py nll docs/evidence/digits_[123].json
    python scripts/evidence/tables.py against docs/evidence/digits_1.json \\
        docs/evidence/digits_blind_1.json

`nll`: nats an image, and differences to the order that --minus names. `prices`: the price of
parallelism alike. `alone`: nats of the same orders one token at a time; differences with --minus.
`against`: by how much the second half of the models exceeds the first, image by image. `each`: the
differences of `nll`, model by model. `samples`: judged samples. `yardsticks`: what real images
score as samples do. `search`: the best candidates, repulsion alone, and the worst.

Files of one model, measured alike, are taken together; models (one for each training seed) are
averaged. Standard errors are over images, of each image's average over the models.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from studies.likelihood import Estimate
from studies.report import markdown
from studies.search import search_table
from util.cli import Parser, add_flags
from util.errors import UserError, blame, run
from util.files import read_json

# Whose nats each table shows.
COSTS = dict(nll="nll", prices="price", alone="alone", against="nll", each="nll")
Row = dict[str, object]  # cells by the title of their column
Costs = Mapping[str, np.ndarray]  # nats of each model and image, (models, n), by order
# What a file says, its `name`, and `results` by steps and order: scores of samples, or nats of
# images (n,), `nll`, `price` and `alone`.
Model = dict[str, Any]
# What the files of a table must have in common: else they cannot be averaged image by image.
COMMON = ("images_sha256", "data_set", "num_images", "samples", "cfg")
# What tells models apart, and how one was measured.
MODEL = ("checkpoint_sha256", "seed", "bf16")
SCORES = {
    "class_accuracy": "accuracy, %",
    "frechet_distance": "Frechet distance",
    "frechet_distance_held_out": "to held-out crops",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table to standard output."""
    parser = Parser(description="Markdown tables from the JSON files of the studies.")
    parser.add_argument("table", choices=[*COSTS, "samples", "yardsticks", "search"])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of one model or several")
    parser.add_argument("--orders", nargs="+", metavar="ORDER", help="by default all")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="its images only")
    parser.add_argument("--minus", metavar="ORDER", help="by default the first order")
    add_flags(parser, "--debug")
    args = parser.parse_args(argv)
    try:
        with blame("files"):
            files = {path: read_json(path) for path in args.files}
            models = [] if args.table == "search" else read_models(files, args.class_name)
        if args.table == "search":
            rows = [row for about in files.values() for row in search_table(about["searches"])]
        elif args.table == "yardsticks":
            rows = list(yardsticks(models))
        else:
            rows = list(by_steps(args, models))
    except KeyError as missing:
        raise UserError(f"files: found no {missing}, expected it for {args.table}") from None
    sys.stdout.write("".join(f"{line}\n" for line in markdown(rows)))


def read_models(files: Mapping[Path, dict], class_name: str | None = None) -> list[Model]:
    """Read what each model was measured by, on all images or on a class of them."""
    models: dict[tuple, Model] = {}
    first_path, first = next(iter(files.items()))
    for path, about in files.items():
        for name in COMMON:
            if about.get(name) != first.get(name):
                expected = f"expected {first.get(name)} as in {first_path}"
                raise ValueError(f"{path} has {name} {about.get(name)}, {expected}")
        chosen: np.ndarray | slice = slice(None)
        if class_name is not None:
            chosen = np.array(ast.literal_eval(about["class_by_image"])) == class_name
            if (count := chosen.sum()) < 2:
                raise ValueError(f"{path} has {count} images of --class, expected at least 2")
        new = {**about, "name": path.stem, "results": {}}
        model = models.setdefault(tuple(map(about.get, MODEL)), new)
        for entry in about["results"]:
            if "nll_by_image" in entry:
                texts = entry["nll_by_image"], entry["price_by_image"]
                nll, price = (np.array(ast.literal_eval(text))[chosen] for text in texts)
                entry |= {"nll": nll, "price": price, "alone": nll - price}
            if model["results"].setdefault((entry["steps"], entry["order"]), entry) is not entry:
                again = f"{entry['order']} in {entry['steps']} steps"
                raise ValueError(f"{path} has {again} again, expected it once of each model")
    return list(models.values())


def by_steps(args: argparse.Namespace, models: Sequence[Model]) -> Iterator[Row]:
    """Make a row for each number of steps in which all models have all orders."""
    measured = [model["results"] for model in models]
    orders = args.orders or list(dict.fromkeys(order for one in measured for _, order in one))
    counts = dict.fromkeys(steps for steps, _ in measured[0])
    counts = [k for k in counts if all((k, order) in one for one in measured for order in orders)]
    if not counts:
        flag = "--orders" if args.orders else "files"
        raise UserError(f"{flag}: found {', '.join(orders)} in no number of steps of every model")
    if args.minus not in (None, *orders):
        raise UserError(f"--minus: found {args.minus}, expected one of {', '.join(orders)}")
    if args.table == "against" and len(models) % 2:
        raise UserError(f"files: found {len(models)} models, expected two halves as large")
    for steps in counts:
        row: Row = {"steps": steps}
        found = {order: [one[steps, order] for one in measured] for order in orders}
        if args.table == "samples":
            for name in ("class_accuracy", "frechet_distance"):
                row |= {f"{order}, {SCORES[name]}": judged(name, found[order]) for order in orders}
        else:
            nats = COSTS[args.table]
            costs = {order: np.array([each[nats] for each in found[order]]) for order in orders}
            minus = args.minus or (None if nats == "alone" else orders[0])
            row |= cost_cells(args.table, costs, minus, [model["name"] for model in models])
        yield row


def cost_cells(table: str, costs: Costs, minus: str | None, names: Sequence[str]) -> Row:
    """Make cells of costs, and of what they exceed one order's by, image by image."""
    if table == "each":  # model by model
        cells = {}
        for number, name in enumerate(names):
            own = differences({order: cost[[number]] for order, cost in costs.items()}, minus)
            cells |= {f"{title}, {name}": difference for title, difference in own.items()}
        return cells
    if table == "alone":
        cells = {order: spread(cost.mean(axis=1), digits=2) for order, cost in costs.items()}
        return cells | differences(costs, minus)
    if table != "against":
        cells = {order: Estimate.of(cost.mean(axis=0)) for order, cost in costs.items()}
        return cells | differences(costs, minus)
    halves = {order: np.split(cost, 2) for order, cost in costs.items()}
    cells = {order: Estimate.of(second.mean(axis=0)) for order, (_, second) in halves.items()}
    for order, (first, second) in halves.items():
        difference = Estimate.of(second.mean(axis=0) - first.mean(axis=0))
        cells[f"{order}, minus the first model"] = difference
    return cells


def differences(costs: Costs, minus: str | None) -> Row:
    return {
        f"{order} - {minus}": Estimate.of(cost.mean(axis=0) - costs[minus].mean(axis=0))
        for order, cost in costs.items()
        if minus not in (None, order)
    }


def yardsticks(models: Sequence[Model]) -> Iterator[Row]:
    """Make rows of the scores of real images: as they are, and reconstructed."""
    for images in ("real", "reconstructed"):
        scores = [model[images] for model in models]
        names = [name for name in SCORES if name in scores[0]]
        yield {"images": images, **{SCORES[name]: judged(name, scores) for name in names}}


def judged(name: str, scores: Sequence[Mapping[str, float]]) -> str:
    """Write a score of one or several models, accuracies in %."""
    factor = 100 if name == "class_accuracy" else 1
    return spread([factor * score[name] for score in scores], digits=1)


def spread(values: Sequence[float], digits: int) -> str:
    """Write the mean of values and, of several, their range."""
    low, mean, high = (f"{reduce(values):.{digits}f}" for reduce in (min, np.mean, max))
    return mean if len(values) == 1 else f"{mean} ({low}-{high})"


if __name__ == "__main__":
    run(main)
