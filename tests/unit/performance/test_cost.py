"""The least time of a generation, against figures worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from models.lpd import MODELS
from orders.group_sizes import group_sizes
from performance.cost import Generation, Rates, Work, total

H200 = Rates(bandwidth=4.3e12, rate=790e12)


def published(model: str, image_size: int, steps: int, images: int = 1) -> Generation:
    with torch.device("meta"):
        network = MODELS[model](img_size=image_size)
    return Generation.of(network, group_sizes(network.grid.num_tokens, steps), 2 * images, 2)


def floor_ms(generation: Generation) -> float:
    return 1e3 * sum(step.seconds(H200) for step in generation.steps())


def test_one_image_is_bound_by_its_weights() -> None:
    generation = published("lpd_l", 256, 20)
    parameters = generation.block_parameters + generation.head_parameters
    assert parameters == pytest.approx(319e6, rel=1e-3)
    assert 20 * 2 * parameters == pytest.approx(12.8e9, rel=0.01)
    work = total(generation.steps())
    # The rest is the cache, read once per step.
    assert 20 * 2 * parameters < work.bytes == pytest.approx(12.8e9, rel=0.03)
    assert floor_ms(generation) == pytest.approx(3.0, rel=0.02) == work.bytes / 4.3e9


def test_many_images_are_bound_by_operations() -> None:
    generation = published("lpd_l", 256, 20, images=256)
    work = total(generation.steps())
    assert work.operations / 256 == pytest.approx(0.65e12, rel=0.05)
    assert floor_ms(generation) == pytest.approx(1e3 * work.operations / 790e12, rel=0.05)


@pytest.mark.parametrize(
    ("name", "steps", "parameters"),
    [("lpd_l", 32, 319e6), ("lpd_xl", 20, 729e6), ("lpd_xl", 32, 729e6), ("lpd_xxl", 20, 1385e6)],
)
def test_other_models_follow(name: str, steps: int, parameters: float) -> None:
    assert floor_ms(published(name, 256, steps)) == pytest.approx(
        1e3 * steps * 2 * parameters / 4.3e12, rel=0.05
    )


TINY = Generation(
    width=10,
    depth=3,
    block_parameters=1000,
    head_parameters=70,
    group_sizes=(1, 3),
    sequences=2,
    number_bytes=4,
)


def test_by_hand() -> None:
    assert TINY.step_rows() == [(1, 1), (1, 3)]
    # The class token sees itself and the query both; then a token sees two, three queries five.
    first = 2 * (2 * 2 * 1000 + 2 * 70 + 4 * 10 * 3 * (1 + 2))
    second = 2 * (2 * 4 * 1000 + 2 * 3 * 70 + 4 * 10 * 3 * (2 + 3 * 5))
    stored = 2 * 2 * 3 * 10 * 4
    assert TINY.steps() == [Work(4280, first), Work(4280 + stored, second)]
    assert TINY.cache_bytes == 5 * stored


def test_activations() -> None:
    assert TINY.activation_bytes == 2 * 4 * 10 * (4 + 5 * 4)
    wide = replace(TINY, head_parameters=10_000)
    assert wide.activation_bytes == 2 * 2 * 3 * 1000 * 4


def test_the_slower_of_moving_and_computing_counts() -> None:
    rates = Rates(bandwidth=10, rate=100)
    assert Work(50, 100).seconds(rates) == 5
    assert Work(50, 1000).seconds(rates) == 10
    assert math.isclose(Work(0, 1).seconds(rates), 0.01)
