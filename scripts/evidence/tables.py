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
Column = tuple[str, str, Callable[[Key], str]]

# What the files of a table must have in common, as far as they say it.
COMMON = ("data_set", "num_images", "num_tokens", "samples", "cfg")
# Which images and which model: by content, or by name where a file does not say that.
IMAGES = ("images_sha256", "cache")
MODEL = ("checkpoint_sha256", "checkpoint")
# How a model was measured.
MEASURED = ("seed", "bf16")
# Candidates of a search that are shown.
SHOWN = 5


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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
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
    lines = study_table(args, make) if flags else make(args.files)
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def read_json(path: Path) -> dict[str, Any]:
    require_file(path, "files", "JSON of a study")
    with blame(f"files: {path}"):
        content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise UserError(f"files: {path} holds a {type(content).__name__}, expected an object")
    return content


def read_study(path: Path) -> Study:
    about = read_json(path)
    entries = about.pop("results", [])
    results = {(entry.get("steps"), entry.get("order")): entry for entry in entries}
    if not results or len(results) < len(entries):
        raise UserError(
            f"files: {path} holds {len(entries)} results of {len(results)} steps and orders, "
            "expected one of each"
        )
    return Study(path, about, results)


def read_models(paths: Sequence[Path]) -> list[Study]:
    """Read one study for each model; all must be of the same images."""
    models: list[Study] = []
    for study in map(read_study, paths):
        if models:
            require_same_images(models[0], study)
        same = [place for place, known in enumerate(models) if are_of_one_model(known, study)]
        if not same:
            models.append(study)
            continue
        known = models[same[0]]
        for steps, order in known.results.keys() & study.results.keys():
            raise UserError(
                f"files: {study.path} and {known.path} are of one model and both hold {order} in "
                f"{steps} steps, expected it once"
            )
        models[same[0]] = replace(known, results={**known.results, **study.results})
    return models


def require_same_images(first: Study, study: Study) -> None:
    """Refuse figures that cannot be averaged or subtracted image by image."""
    for name in (*told_by_both(first, study, IMAGES)[:1], *told_by_both(first, study, COMMON)):
        if first.about[name] != study.about[name]:
            raise UserError(
                f"files: {study.path} has {name} {study.about[name]}, expected "
                f"{first.about[name]} as in {first.path}"
            )


def are_of_one_model(first: Study, second: Study) -> bool:
    """Whether two files say that they are of the same model, measured alike."""
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


def by_image(studies: Sequence[Study], what: str, key: Key) -> np.ndarray:
    """Nats (`nll`) or price of each image, averaged over the models: (n,)."""
    values = []
    for study in studies:
        name = f"{what}_by_image"
        if name not in study.results[key]:
            raise UserError(f"files: {study.path} has no {name}, expected it of every order")
        images = np.array(ast.literal_eval(study.results[key][name]))
        values.append(images if study.chosen is None else images[study.chosen])
    return np.mean(values, axis=0)


def study_table(
    args: argparse.Namespace, make_columns: Callable[..., list[Column]]
) -> Iterator[str]:
    """Steps by orders, of all models."""
    studies = read_models(args.files)
    if getattr(args, "class_name", None) is not None:
        studies = [choose_class(study, args.class_name) for study in studies]
    every = list(dict.fromkeys(order for study in studies for _, order in study.results))
    orders, minus = args.orders or every, getattr(args, "minus", None)
    require_known("--orders", orders, every)
    require_known("--minus", [minus or orders[0]], orders)
    needed = [(study, order) for study in studies for order in orders]
    counts = dict.fromkeys(steps for steps, _ in studies[0].results)
    counts = [k for k in counts if all((k, order) in study.results for study, order in needed)]
    if not counts:
        raise UserError(
            f"files: found no number of steps with {', '.join(orders)} of every model, expected one"
        )
    columns = make_columns(studies, orders, minus)
    yield f"| steps | {' | '.join(title for title, _, _ in columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for steps in counts:
        cells = [cell((steps, order)) for _, order, cell in columns]
        yield f"| {steps} | {' | '.join(cells)} |"


def require_known(flag: str, orders: Sequence[str], known: Sequence[str]) -> None:
    for order in orders:
        if order not in known:
            raise UserError(f"{flag}: found {order}, expected some of {', '.join(known)}")


def differences(
    cost: Callable[[Key], np.ndarray], orders: Sequence[str], minus: str
) -> list[Column]:
    """Differences of a cost by image to that of one order."""

    def difference(key: Key) -> str:
        return str(Estimate.of(cost(key) - cost((key[0], minus))))

    return [(f"{order} - {minus}", order, difference) for order in orders if order != minus]


def cost_columns(
    what: str, studies: Sequence[Study], orders: Sequence[str], minus: str | None
) -> list[Column]:
    """Nats an image or their price, then the differences to one order's."""
    cost = partial(by_image, studies, what)
    columns = [(order, order, lambda key: str(Estimate.of(cost(key)))) for order in orders]
    return columns + differences(cost, orders, minus or orders[0])


def alone_columns(
    studies: Sequence[Study], orders: Sequence[str], minus: str | None
) -> list[Column]:
    """Nats an image of each order one token at a time: means and, of several models, ranges."""

    def alone(chosen: Sequence[Study], key: Key) -> np.ndarray:
        return by_image(chosen, "nll", key) - by_image(chosen, "price", key)

    def mean(key: Key) -> str:
        return spread([alone([study], key).mean() for study in studies], digits=2)

    columns = [(order, order, mean) for order in orders]
    return columns + (differences(partial(alone, studies), orders, minus) if minus else [])


def against_columns(studies: Sequence[Study], orders: Sequence[str], _: None) -> list[Column]:
    """Nats an image of the second half of the models, and by how much they exceed the first's."""
    if len(studies) % 2:
        raise UserError(
            f"files: found {len(studies)} models, expected as many of one as of the other"
        )
    first, second = studies[: len(studies) // 2], studies[len(studies) // 2 :]

    def nll(key: Key) -> str:
        return str(Estimate.of(by_image(second, "nll", key)))

    def difference(key: Key) -> str:
        return str(Estimate.of(by_image(second, "nll", key) - by_image(first, "nll", key)))

    columns = [(order, order, nll) for order in orders]
    return columns + [(f"{order}, minus the first model", order, difference) for order in orders]


def each_columns(
    studies: Sequence[Study], orders: Sequence[str], minus: str | None
) -> list[Column]:
    """Differences to one order, of each model by itself."""
    return [
        (f"{title}, {study.path.stem}", order, cell)
        for study in studies
        for title, order, cell in cost_columns("nll", [study], orders, minus)[len(orders) :]
    ]


def samples_columns(studies: Sequence[Study], orders: Sequence[str], _: None) -> list[Column]:
    """Class accuracy and Frechet distance, means and, of several models, ranges."""

    def judged(name: str, factor: float, key: Key) -> str:
        return spread([factor * study.results[key][name] for study in studies], digits=1)

    accuracy = partial(judged, "class_accuracy", 100)
    distance = partial(judged, "frechet_distance", 1)
    columns = [(f"{order}, accuracy, %", order, accuracy) for order in orders]
    return columns + [(f"{order}, Frechet distance", order, distance) for order in orders]


def search_table(paths: Sequence[Path]) -> Iterator[str]:
    """Candidates on the images that chose among them, and the best on the others."""
    yield "| steps | images | rank | repulsion | proximity | sizes | nats | minus published |"
    yield "|---" * 8 + "|"
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
                nll = Estimate(each["nll"], each["nll_se"])
                less = Estimate(each["minus_published"], each["minus_published_se"])
                yield (
                    f"| {search['steps']} | {half} | {rank} | {each['repulsion']:g} | "
                    f"{each['proximity']:g} | {each['shape']} | {nll} | {less} |"
                )


def yardsticks_table(paths: Sequence[Path]) -> Iterator[str]:
    """Class accuracy and Frechet distances of real images: as they are, and reconstructed."""
    files = [study.about for study in read_models(paths)]
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
        factors = {"class_accuracy": 100}
        cells = [
            spread([factors.get(name, 1) * file[images][name] for file in files], digits=1)
            for name in names
        ]
        yield f"| {images} | {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Their mean and, of several, their range."""
    low, mean, high = (f"{reduce(values):.{digits}f}" for reduce in (min, np.mean, max))
    return mean if len(values) == 1 else f"{mean} ({low}-{high})"


FLAGS: dict[str, dict[str, Any]] = {
    "--orders": {"nargs": "+", "metavar": "ORDER", "help": "by default all"},
    "--class": {"dest": "class_name", "metavar": "NAME", "help": "its images only"},
    "--minus": {"metavar": "ORDER", "help": "by default the first order"},
}
# What makes a table, or its columns, and the flags that it takes.
TABLES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "nll": (partial(cost_columns, "nll"), ("--orders", "--class", "--minus")),
    "prices": (partial(cost_columns, "price"), ("--orders", "--class", "--minus")),
    "alone": (alone_columns, ("--orders", "--class", "--minus")),
    "against": (against_columns, ("--orders", "--class")),
    "each": (each_columns, ("--orders", "--class", "--minus")),
    "samples": (samples_columns, ("--orders",)),
    "yardsticks": (yardsticks_table, ()),
    "search": (search_table, ()),
}


if __name__ == "__main__":
    run(lambda: main(parse_args()))
