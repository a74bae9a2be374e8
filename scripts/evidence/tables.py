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

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from studies.likelihood import Estimate
from studies.search import REPULSION_ALONE
from util.cli import Parser, add_flags
from util.errors import UserError, blame, require_file, run

# Steps and order.
Key = tuple[int, str]
# Title, order, and what a cell holds.
Column = tuple[str, str, Callable[[Key], object]]
Row = list[object]

# What the files of a table must have in common, as far as they say it.
COMMON = ("data_set", "num_images", "num_tokens", "samples", "cfg")
# Which images and which model: by content, or by name where a file does not say that.
IMAGES = ("images_sha256", "cache")
MODEL = ("checkpoint_sha256", "checkpoint")
# How a model was measured.
MEASURED = ("seed", "bf16")
# Candidates of a search that are shown.
SHOWN = 5
SCORES = {
    "class_accuracy": "accuracy, %",
    "frechet_distance": "Frechet distance",
    "frechet_distance_held_out": "to held-out crops",
}


@dataclass(frozen=True)
class Study:
    """What was measured of one model."""

    path: Path  # of the JSON file, or the first of several
    about: dict[str, Any]  # its entries beside the results
    results: dict[Key, dict[str, Any]]  # of all files
    chosen: np.ndarray | EllipsisType = ...  # the images that count


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: a table, its files and flags."""
    parser = Parser(description="Markdown tables from the JSON files of the studies.")
    tables = parser.add_subparsers(dest="table", required=True)
    for name, (_, flags) in TABLES.items():
        table = tables.add_parser(name)
        table.add_argument("files", nargs="+", type=Path, help="JSON files of one model or several")
        for flag in flags:
            table.add_argument(flag, **FLAGS[flag])
        add_flags(table, "--debug")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the table to standard output."""
    make, flags = TABLES[args.table]
    head, *rows = study_table(args, make) if flags else make(args.files)
    lines = [" | ".join(map(str, row)) for row in rows]
    sys.stdout.write(f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n")
    sys.stdout.write("".join(f"| {line} |\n" for line in lines))


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a file of a study."""
    require_file(path, "files", "JSON of a study")
    with blame(f"files: {path}"):
        content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise UserError(f"files: {path} holds a {type(content).__name__}, expected an object")
    return content


def read_models(paths: Sequence[Path]) -> list[Study]:
    """Read one study for each model; all must be of the same images."""
    models: list[Study] = []
    for path in paths:
        about = read_json(path)
        entries = about.pop("results", [])
        results = {(entry.get("steps"), entry.get("order")): entry for entry in entries}
        if not results or len(results) < len(entries):
            raise UserError(
                f"files: {path} holds {len(entries)} results of {len(results)} steps and orders, "
                "expected one of each"
            )
        study = Study(path, about, results)
        first = models[0] if models else study
        # Else figures could not be averaged or subtracted image by image.
        for name in (*told_by_both(first, study, IMAGES)[:1], *told_by_both(first, study, COMMON)):
            if first.about[name] != about[name]:
                raise UserError(
                    f"files: {path} has {name} {about[name]}, expected {first.about[name]} as in "
                    f"{first.path}"
                )
        known = next((model for model in models if are_of_one_model(model, study)), None)
        if known is None:
            models.append(study)
            continue
        for steps, order in known.results.keys() & results.keys():
            raise UserError(
                f"files: {path} and {known.path} are of one model and both hold {order} in "
                f"{steps} steps, expected it once"
            )
        known.results.update(results)
    return models


def are_of_one_model(first: Study, second: Study) -> bool:
    """Say whether two files are of the same model, measured alike."""
    model = told_by_both(first, second, MODEL)[:1]
    names = [*model, *told_by_both(first, second, MEASURED)]
    return bool(model) and all(first.about[name] == second.about[name] for name in names)


def told_by_both(first: Study, second: Study, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in first.about and name in second.about]


def choose_class(study: Study, name: str) -> Study:
    """Choose the images of one class."""
    classes = ast.literal_eval(study.about.get("class_by_image", "[]"))
    if name not in classes:
        known = ", ".join(sorted(set(classes))) or "a file that names its images' classes"
        raise UserError(f"--class: found {name} for {study.path}, expected {known}")
    chosen = np.array([one == name for one in classes])
    if chosen.sum() < 2:
        raise UserError(f"--class: found one image of {name}, expected at least 2")
    return replace(study, chosen=chosen)


def by_image(what: str, studies: Sequence[Study], key: Key) -> np.ndarray:
    """Nats (`nll`), their price or nats `alone` of each image (n,), averaged over the models."""
    if what == "alone":
        return by_image("nll", studies, key) - by_image("price", studies, key)
    values = []
    for study in studies:
        name = f"{what}_by_image"
        if name not in study.results[key]:
            raise UserError(f"files: {study.path} has no {name}, expected it of every order")
        values.append(np.array(ast.literal_eval(study.results[key][name]))[study.chosen])
    return np.mean(values, axis=0)


def study_table(
    args: argparse.Namespace, make_columns: Callable[..., list[Column]]
) -> Iterator[Row]:
    """Make rows of steps by orders, of all models."""
    studies = read_models(args.files)
    if getattr(args, "class_name", None) is not None:
        studies = [choose_class(study, args.class_name) for study in studies]
    every = list(dict.fromkeys(order for study in studies for _, order in study.results))
    orders, minus = args.orders or every, getattr(args, "minus", None)
    for flag, given, known in (("--orders", orders, every), ("--minus", [minus], orders)):
        for order in given:
            if order not in (None, *known):
                raise UserError(f"{flag}: found {order}, expected some of {', '.join(known)}")
    needed = [(study, order) for study in studies for order in orders]
    counts = dict.fromkeys(steps for steps, _ in studies[0].results)
    counts = [k for k in counts if all((k, order) in study.results for study, order in needed)]
    if not counts:
        raise UserError(
            f"files: found no number of steps with {', '.join(orders)} of every model, expected one"
        )
    columns = make_columns(studies, orders, minus)
    yield ["steps", *(title for title, _, _ in columns)]
    for steps in counts:
        yield [steps, *(cell((steps, order)) for _, order, cell in columns)]


def cost_columns(
    what: str, studies: Sequence[Study], orders: Sequence[str], minus: str | None
) -> list[Column]:
    """Make columns of costs of an image, then of the differences to one order's.

    Of `alone` they are means and, of several models, ranges, and differences only if asked for.
    """
    cost, alone = partial(by_image, what, studies), what == "alone"

    def mean(key: Key) -> object:
        each = [by_image(what, [study], key).mean() for study in studies] if alone else []
        return spread(each, digits=2) if alone else Estimate.of(cost(key))

    def difference(key: Key) -> Estimate:
        return Estimate.of(cost(key) - cost((key[0], minus)))

    minus = minus or (None if alone else orders[0])
    others = [order for order in orders if minus not in (None, order)]
    columns = [(order, order, mean) for order in orders]
    return columns + [(f"{order} - {minus}", order, difference) for order in others]


def against_columns(studies: Sequence[Study], orders: Sequence[str], _: None) -> list[Column]:
    """Make columns of the second half of the models, and of what they exceed the first half by."""
    half, odd = divmod(len(studies), 2)
    if odd:
        raise UserError(
            f"files: found {len(studies)} models, expected as many of one as of the other"
        )

    def difference(key: Key) -> Estimate:
        second, first = (by_image("nll", part, key) for part in (studies[half:], studies[:half]))
        return Estimate.of(second - first)

    columns = cost_columns("nll", studies[half:], orders, None)[: len(orders)]
    return columns + [(f"{order}, minus the first model", order, difference) for order in orders]


def each_columns(
    studies: Sequence[Study], orders: Sequence[str], minus: str | None
) -> list[Column]:
    """Make columns of differences to one order, of each model by itself."""
    return [
        (f"{title}, {study.path.stem}", order, cell)
        for study in studies
        for title, order, cell in cost_columns("nll", [study], orders, minus)[len(orders) :]
    ]


def samples_columns(studies: Sequence[Study], orders: Sequence[str], _: None) -> list[Column]:
    """Make columns of class accuracies, then of Frechet distances."""

    def judged(name: str, key: Key) -> str:
        return judge([study.results[key] for study in studies], name)

    columns = [(name, order) for name in ("class_accuracy", "frechet_distance") for order in orders]
    return [(f"{order}, {SCORES[name]}", order, partial(judged, name)) for name, order in columns]


def yardsticks_table(paths: Sequence[Path]) -> Iterator[Row]:
    """Make rows of the scores of real images: as they are, and reconstructed."""
    studies = [study.about for study in read_models(paths)]
    if any(not {"real", "reconstructed"} <= study.keys() for study in studies):
        raise UserError("files: found no real and reconstructed, expected them of every file")
    names = [name for name in SCORES if all(name in study["real"] for study in studies)]
    yield ["images", *(SCORES[name] for name in names)]
    for images in ("real", "reconstructed"):
        yield [images, *(judge([study[images] for study in studies], name) for name in names)]


def judge(scores: Sequence[dict[str, float]], name: str) -> str:
    """Write a score of one or several models, accuracies in %."""
    factor = 100 if name == "class_accuracy" else 1
    return spread([factor * score[name] for score in scores], digits=1)


def spread(values: Sequence[float], digits: int) -> str:
    """Write the mean of values and, of several, their range."""
    low, mean, high = (f"{reduce(values):.{digits}f}" for reduce in (min, np.mean, max))
    return mean if len(values) == 1 else f"{mean} ({low}-{high})"


def search_table(paths: Sequence[Path]) -> Iterator[Row]:
    """Make rows of candidates on the images that chose among them, and the best on the others."""
    yield [*"steps images rank repulsion proximity sizes nats".split(), "minus published"]
    for path in paths:
        searches = read_json(path).get("searches")
        if not searches:
            raise UserError(f"files: {path} holds no searches, expected some")
        for search in searches:
            ranked = list(enumerate(search["candidates"], start=1))
            alone = [pair for pair in ranked if pair[1]["proximity"] >= REPULSION_ALONE]
            shown = dict([*ranked[:SHOWN], *alone[:1], ranked[-1]])
            halves = [("chosen on", rank, candidate) for rank, candidate in shown.items()]
            for half, rank, each in [*halves, ("the others", 1, search["best"])]:
                setting = (f"{each['repulsion']:g}", f"{each['proximity']:g}", each["shape"])
                names = ("nll", "minus_published")
                figures = (Estimate(each[name], each[f"{name}_se"]) for name in names)
                yield [search["steps"], half, rank, *setting, *figures]


FLAGS: dict[str, dict[str, Any]] = {
    "--orders": {"nargs": "+", "metavar": "ORDER", "help": "by default all"},
    "--class": {"dest": "class_name", "metavar": "NAME", "help": "its images only"},
    "--minus": {"metavar": "ORDER", "help": "by default the first order"},
}
# What makes a table, or its columns, and the flags that it takes.
TABLES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "nll": (partial(cost_columns, "nll"), ("--orders", "--class", "--minus")),
    "prices": (partial(cost_columns, "price"), ("--orders", "--class", "--minus")),
    "alone": (partial(cost_columns, "alone"), ("--orders", "--class", "--minus")),
    "against": (against_columns, ("--orders", "--class")),
    "each": (each_columns, ("--orders", "--class", "--minus")),
    "samples": (samples_columns, ("--orders",)),
    "yardsticks": (yardsticks_table, ()),
    "search": (search_table, ()),
}


if __name__ == "__main__":
    run(lambda: main(parse_args()))
