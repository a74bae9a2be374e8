"""What the studies' JSON files say, model by model, for `tables.py`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError, blame, require_file

# Steps and order.
Key = tuple[int, str]

# What the files of a table must have in common, as far as they say it.
COMMON = ("data_set", "num_images", "num_tokens", "samples", "cfg")
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


def read_json(path: Path) -> dict[str, Any]:
    """What a study wrote."""
    require_file(path, "files", "JSON of a study")
    with blame(f"files: {path}"):
        found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise UserError(f"files: {path} holds a {type(found).__name__}, expected an object")
    return found


def read_study(path: Path) -> Study:
    """One file."""
    about = read_json(path)
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
    counts = dict.fromkeys(steps for steps, _ in studies[0].results)
    found = [k for k in counts if all((k, order) in study.results for study, order in needed)]
    if not found:
        raise UserError(
            f"files: found no number of steps with {', '.join(orders)} of every model, expected one"
        )
    return found


def by_image(studies: Sequence[Study], key: Key, what: str = "nll") -> np.ndarray:
    """Nats of each image, (n,), or its price, averaged over the models."""
    return np.mean([study.by_image(key, what) for study in studies], axis=0)
