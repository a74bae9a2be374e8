"""Results of a study of orders for people and programs: table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from studies.likelihood import Estimate, Measured


def table(results: Sequence[Measured]) -> list[str]:
    """Markdown lines. Differences are paired over images, so their errors are much smaller."""
    first = results[0].setting.order
    lines = [
        f"| steps | order | nats an image | nats a token | price | minus {first} |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        setting, num_tokens = result.setting, sum(result.setting.group_sizes)
        nll = Estimate.of(result.nll)
        beside = first_of_same_sizes(result, results)
        cells = (
            f"{setting.steps} {setting.sizes_name}".strip(),
            setting.order,
            str(nll),
            f"{nll.mean / num_tokens:.4f} ± {nll.se / num_tokens:.4f}",
            str(Estimate.of(result.price_by_step.sum(axis=1))),
            "" if beside is None else str(Estimate.of(result.nll - beside.nll)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def entries(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """The same, with every step and image, for a JSON file; `_se` is a standard error."""
    found = []
    for result in results:
        setting, num_tokens = result.setting, sum(result.setting.group_sizes)
        nll = Estimate.of(result.nll)
        entry = {
            "order": setting.order,
            "steps": setting.steps,
            "group_sizes": str(list(setting.group_sizes)),
            "sizes_name": setting.sizes_name,
            **_named("nll", nll),
            **_named("nll_per_token", Estimate(nll.mean / num_tokens, nll.se / num_tokens)),
        }
        beside = first_of_same_sizes(result, results)
        if beside is not None:
            entry |= _named("minus_first_order", Estimate.of(result.nll - beside.nll))
        if result.one_by_one is not None:
            entry |= _named("price", Estimate.of(result.price_by_step.sum(axis=1)))
            entry |= _columns("nll_by_step", result.by_step)
            entry |= _columns("price_by_step", result.price_by_step)
            entry["price_by_image"] = _by_image(result.price_by_step.sum(axis=1))
            if beside is not None:
                less = (result.price_by_step - beside.price_by_step).sum(axis=1)
                entry |= _named("price_minus_first_order", Estimate.of(less))
        # For comparisons across files: of two models on the same images, say.
        entry["nll_by_image"] = _by_image(result.nll)
        found.append(entry)
    return found


def _by_image(values: np.ndarray) -> str:
    """(n,) as text."""
    return str([round(value, 3) for value in values.tolist()])


def first_of_same_sizes(result: Measured, results: Sequence[Measured]) -> Measured | None:
    """The first order's result with the same group sizes, if that is another."""
    sizes = result.setting.group_sizes
    beside = next(other for other in results if other.setting.group_sizes == sizes)
    return None if beside is result else beside


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: round(estimate.mean, 6), f"{name}_se": round(estimate.se, 6)}


def _columns(name: str, values: np.ndarray) -> dict[str, str]:
    """(n, K) as two lists of K numbers; as text, because a list would take K lines."""
    estimates = [Estimate.of(column) for column in values.T]
    return {
        name: str([round(estimate.mean, 4) for estimate in estimates]),
        f"{name}_se": str([round(estimate.se, 4) for estimate in estimates]),
    }
