"""Which bricks make a stack."""

from __future__ import annotations

import math

from field.layers import SirenConfig
from training import stacks
from training.recipe import Recipe
from training.stacks import stacks_of


def chosen(widths: list[int], memory: float = math.inf, recipes: dict[int, Recipe] | None = None) -> list[list[int]]:
    configs = {k: SirenConfig(width, 5) for k, width in enumerate(widths)}
    recipes = {k: Recipe(10, 1 << 14, 1 / width) for k, width in enumerate(widths)} | (recipes or {})
    return stacks_of(configs, recipes, dict.fromkeys(configs, 64**3), memory)


def test_stacks_are_of_one_padded_width_and_fill_the_card():
    """Narrower networks join a stack that is small: 8 networks of 16,384 samples a step are enough."""
    assert chosen([20] * 8 + [40] * 8) == [[*range(8, 16)], [*range(8)]]
    assert chosen([20] * 8 + [40] * 7) == [[*range(8, 15), 0], [*range(1, 8)]]
    assert chosen([4, 90, 20, 60]) == [[1, 3], [2, 0]]
    assert [len(stack) for stack in chosen([20] * 150)] == [64, 64, 22]


def test_stacks_fit_into_the_memory():
    each = stacks.bytes_needed(64**3, SirenConfig(20, 5), 1 << 14)
    assert [len(stack) for stack in chosen([20] * 7, 3.5 * each)] == [3, 3, 1]
    assert chosen([20] * 7, 0.5 * each) == []


def test_bricks_of_other_recipes_are_in_other_stacks_or_alone():
    other = {1: Recipe(20, 1 << 14, 0.1), 3: Recipe(10, 1 << 14, 0.1, grad_lambda=0.1)}
    assert chosen([20] * 5, recipes=other) == [[0, 2, 4], [1]]
