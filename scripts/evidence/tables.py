"""The tables of docs/evidence.md, from the JSON files of the studies.

    python scripts/evidence/tables.py nll docs/evidence/digits_[123].json
    python scripts/evidence/tables.py prices docs/evidence/digits_[123].json
    python scripts/evidence/tables.py alone docs/evidence/digits_[123].json
    python scripts/evidence/tables.py against docs/evidence/digits_1.json \\
        docs/evidence/digits_blind_1.json
    python scripts/evidence/tables.py samples docs/evidence/digits_samples_[123].json

`nll`: what the files say, averaged over them (one for each training seed); differences are to the
order that --minus names. `prices`: the price of parallelism, paired alike. `alone`: nats of the
same orders one token at a time. `against`: by how much the second half of the files exceeds the
first, image by image. `samples`: judged samples. Standard errors are over images, of each image's
average over the files; a price's among `nll` is the average of the files' own, which is no less.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from util.cli import Parser
from util.errors import UserError, require_file, run
from util.order_study.study import Estimate

# Steps and order.
Key = tuple[int, str]
Cell = Callable[[Key], str]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Markdown tables from the JSON files of the studies.")
    parser.add_argument("table", choices=["nll", "prices", "alone", "against", "samples"])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files, one for each seed")
    parser.add_argument("--minus", metavar="ORDER", help="by default the first order")
    parser.add_argument("--debug", action="store_true", help="show the traceback of bad input")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the table to standard output."""
    files = [read_results(path) for path in args.files]
    if args.table == "nll":
        lines = nll_table(files, args.minus)
    elif args.table == "prices":
        lines = prices_table(files, args.minus)
    elif args.table == "alone":
        lines = alone_table(files)
    elif args.table == "samples":
        lines = samples_table(files)
    elif len(files) % 2:
        raise UserError(f"files: found {len(files)}, expected as many of one model as of the other")
    else:
        lines = against_table(files[: len(files) // 2], files[len(files) // 2 :])
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def read_results(path: Path) -> dict[Key, dict[str, Any]]:
    """The results of a file by steps and order."""
    require_file(path, "files", "JSON of a study")
    found = json.loads(path.read_text()).get("results", [])
    results = {(entry["steps"], entry["order"]): entry for entry in found}
    if not results or len(results) < len(found):
        raise UserError(
            f"files: {path} holds {len(found)} results of {len(results)} steps and orders, "
            "expected one of each"
        )
    return results


def nll_table(
    files: Sequence[dict[Key, dict[str, Any]]], minus: str | None = None
) -> Iterator[str]:
    """Nats an image, what of them is the price of parallelism, differences to one order."""
    orders, base = orders_and_base(files, minus)

    def nll(key: Key) -> str:
        return str(Estimate.of(by_image(files, key)))

    def price(key: Key) -> str:
        found = np.mean([(file[key]["price"], file[key]["price_se"]) for file in files], axis=0)
        return str(Estimate(*found))

    def difference(key: Key) -> str:
        return str(Estimate.of(by_image(files, key) - by_image(files, (key[0], base))))

    columns = [(order, order, nll) for order in orders]
    columns += [(f"price, {order}", order, price) for order in orders]
    columns += [(f"{order} - {base}", order, difference) for order in orders if order != base]
    return rows(files[0], columns)


def prices_table(
    files: Sequence[dict[Key, dict[str, Any]]], minus: str | None = None
) -> Iterator[str]:
    """The price of parallelism, nats an image, and its differences to one order's."""
    orders, base = orders_and_base(files, minus)

    def price(key: Key) -> str:
        return str(Estimate.of(by_image(files, key, "price")))

    def difference(key: Key) -> str:
        other = by_image(files, (key[0], base), "price")
        return str(Estimate.of(by_image(files, key, "price") - other))

    columns = [(order, order, price) for order in orders]
    columns += [(f"{order} - {base}", order, difference) for order in orders if order != base]
    return rows(files[0], columns)


def orders_and_base(
    files: Sequence[dict[Key, dict[str, Any]]], minus: str | None
) -> tuple[list[str], str]:
    """All orders, and the one that differences are taken to."""
    orders = list(dict.fromkeys(order for _, order in files[0]))
    if minus not in (None, *orders):
        raise UserError(f"--minus: found {minus}, expected one of {', '.join(orders)}")
    return orders, minus or orders[0]


def alone_table(files: Sequence[dict[Key, dict[str, Any]]]) -> Iterator[str]:
    """Nats an image of each order one token at a time: means and, of several files, ranges."""
    orders = list(dict.fromkeys(order for _, order in files[0]))

    def alone(key: Key) -> str:
        nats = [by_image([file], key).mean() - file[key]["price"] for file in files]
        return spread(nats, digits=2)

    return rows(files[0], [(order, order, alone) for order in orders])


def against_table(
    first: Sequence[dict[Key, dict[str, Any]]], second: Sequence[dict[Key, dict[str, Any]]]
) -> Iterator[str]:
    """Nats an image of the second model, and how much more that is than of the first."""
    orders = list(dict.fromkeys(order for _, order in second[0]))

    def nll(key: Key) -> str:
        return str(Estimate.of(by_image(second, key)))

    def difference(key: Key) -> str:
        return str(Estimate.of(by_image(second, key) - by_image(first, key)))

    columns = [(order, order, nll) for order in orders]
    columns += [(f"{order}, minus the first model", order, difference) for order in orders]
    return rows(second[0], columns)


def samples_table(files: Sequence[dict[Key, dict[str, Any]]]) -> Iterator[str]:
    """Class accuracy and Frechet distance, means and, of several files, ranges."""
    orders = list(dict.fromkeys(order for _, order in files[0]))

    def judged(name: str, factor: float) -> Cell:
        return lambda key: spread([factor * file[key][name] for file in files], digits=1)

    accuracy, distance = judged("class_accuracy", 100), judged("frechet_distance", 1)
    columns = [(f"{order}, accuracy, %", order, accuracy) for order in orders]
    columns += [(f"{order}, Frechet distance", order, distance) for order in orders]
    return rows(files[0], columns)


def spread(values: Sequence[float], digits: int) -> str:
    """Their mean and, of several, their range."""
    low, mean, high = (f"{found(values):.{digits}f}" for found in (min, np.mean, max))
    return mean if len(values) == 1 else f"{mean} ({low}-{high})"


def by_image(files: Sequence[dict[Key, dict[str, Any]]], key: Key, what: str = "nll") -> np.ndarray:
    """Nats of each image, (n,), or its price, averaged over the files."""
    name = f"{what}_by_image"
    if any(name not in file[key] for file in files):
        raise UserError(f"files: found no {name}, expected it of every order")
    return np.mean([ast.literal_eval(file[key][name]) for file in files], axis=0)


def rows(file: dict[Key, Any], columns: Sequence[tuple[str, str, Cell]]) -> Iterator[str]:
    """A Markdown table with a line for every number of steps.

    Args:
        file: its keys name the steps.
        columns: title, order and what a cell holds.
    """
    yield f"| steps | {' | '.join(title for title, _, _ in columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for steps in dict.fromkeys(steps for steps, _ in file):
        cells = [cell((steps, order)) for _, order, cell in columns]
        yield f"| {steps} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run(lambda: main(parse_args()))
