from __future__ import annotations

import random

import numpy
import pytest
import torch

from loraprune.metrics.tasks.lm_eval import own_random_numbers


def drawn() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), torch.rand(()).item()


def test_the_seed_decides_what_is_drawn_inside() -> None:
    with own_random_numbers(1):
        first = drawn()
    with own_random_numbers(1):
        assert drawn() == first
    with own_random_numbers(2):
        assert all(a != b for a, b in zip(drawn(), first, strict=True))


def test_random_numbers_outside_go_on_as_if_nothing_had_been_drawn_even_after_an_error() -> None:
    def fail() -> None:
        with own_random_numbers(8):
            drawn()
            raise ZeroDivisionError

    with own_random_numbers(7):
        expected = drawn(), drawn()
    with own_random_numbers(7):
        first = drawn()
        with pytest.raises(ZeroDivisionError):
            fail()
        assert (first, drawn()) == expected
