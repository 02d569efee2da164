"""A repair on few calibration tokens is held back, so that it never loses to the plain cut."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from tests.models import tiny_model, token_ids, with_lora
from tests.thinned import thinned
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import loraprune.calibration.least_squares as least_squares
from loraprune.calibration.least_squares import NormalEquations, steadied
from loraprune.data.demo import demo_model, standard_library_text
from loraprune.pruning.calibration_data import warn_of_few_tokens
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.groups import Groups
from loraprune.pruning.oneshot import prune_, settled_repair
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.pruning.pruner import Pruner
from loraprune.structure.describe import describe
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.repairs import Bias

LENGTH = 128


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A trained one."""
    return AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def texts() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Sequences of different documents: to calibrate on, and to measure on."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    train, held_out = standard_library_text()

    def sequences(documents: list[str], count: int, length: int) -> list[torch.Tensor]:
        ids = (torch.tensor(tokenizer(text[:4000])["input_ids"][100 : 100 + length]) for text in documents)
        return [row for row in ids if len(row) == length][:count]

    return sequences(train[::40], 40, LENGTH), sequences(held_out, 12, 384)


def perplexity(model: PreTrainedModel, rows: list[torch.Tensor]) -> float:
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss for row in rows]
    return float(torch.stack(losses).mean().exp())


def cut(dense: PreTrainedModel, calibration: list[torch.Tensor], repair: str, criterion: str) -> PreTrainedModel:
    model = copy.deepcopy(dense)
    config = OneshotConfig(ratio=0.5, criterion=criterion, repair=repair, allocation="uniform")
    structure = describe(model)
    if isinstance(config.repair, Bias):
        give_biases_(model, structure)
    groups = Groups.all_of(structure, config.target, config.criterion)
    settled = settled_repair(config.repair, model, structure, calibration)
    prune_(model, groups, calibration, repair=settled)
    return model


@pytest.mark.parametrize("count", thinned([1, 8, 2, 4], 2))
@pytest.mark.parametrize("criterion", [pytest.param("magnitude", marks=pytest.mark.full), "flap"])
def test_no_repair_is_worse_than_the_plain_cut(
    criterion: str, count: int, model: PreTrainedModel, texts: tuple[list[torch.Tensor], list[torch.Tensor]]
) -> None:
    calibration, held_out = texts[0][:count], texts[1]
    plain = perplexity(cut(model, calibration, "none", criterion), held_out)
    for repair in ("refit", "stream", "bias"):
        repaired = perplexity(cut(model, calibration, repair, criterion), held_out)
        assert repaired <= plain, f"{repair}: {repaired:.1f} with it, {plain:.1f} without"


def parameters_of(model: PreTrainedModel) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("repair", ["refit", "bias"])
def test_with_six_tokens_a_feature_nothing_is_held_back(repair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_model()  # its layers read 32 and 24 features
    enough, few = [list(token_ids(4, length, seed=5)) for length in (48, 47)]

    def both(calibration: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        held_back = parameters_of(cut(dense, calibration, repair, "magnitude"))
        with monkeypatch.context() as patched:
            patched.setattr(least_squares, "TOKENS_A_FEATURE", 0)
            return held_back, parameters_of(cut(dense, calibration, repair, "magnitude"))

    assert all(map(torch.equal, *both(enough)))
    assert not all(map(torch.equal, *both(few)))


def equations(inputs: torch.Tensor, wanted: torch.Tensor) -> NormalEquations:
    """Of a layer whose columns that stay are zero."""
    return NormalEquations(inputs.T @ inputs / len(inputs), inputs.T @ wanted / len(inputs))


def test_the_least_ridge_is_taken_where_the_halves_agree_and_no_change_where_they_contradict_each_other() -> None:
    inputs = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    wanted = inputs @ torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    first, second = equations(inputs[:100], wanted[:100]), equations(inputs[100:], wanted[100:])
    assert steadied((first, second), 0.001) == 0.001
    assert steadied((first, equations(inputs[100:], -wanted[100:])), 0.001) is None


def test_the_loss_of_a_change_is_that_on_the_rows() -> None:
    inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    change = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    expected = ((wanted - inputs @ change).square().sum() - wanted.square().sum()) / 50
    assert equations(inputs, wanted).loss(change) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("tokens", "repair", "criterion", "said"),
    [
        (191, "refit", "magnitude", True),
        (192, "refit", "magnitude", False),
        (191, "bias", "magnitude", True),
        (191, "none", "osscar", True),
        (191, "none", "flap", False),
    ],
)
def test_fewer_are_warned_of(
    tokens: int, repair: str, criterion: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config: Any = OneshotConfig(ratio=0.5, repair=repair, criterion=criterion)
    with caplog.at_level(logging.WARNING, "loraprune"):
        warn_of_few_tokens(describe(tiny_model()), [torch.arange(tokens)], config.repair, config.criterion)
    assert ("191 calibration tokens are few for the 32 input features" in caplog.text) == said


@pytest.mark.parametrize("start", [0.0, 0.3], ids=["before training", "while training"])
def test_so_they_are_while_a_model_is_tuned(start: float, caplog: pytest.LogCaptureFixture) -> None:
    config = PruningConfig(ratio=0.3, prune_start=start, prune_end=0.6 if start else 0.0, cuts=1, criterion="magnitude")
    with caplog.at_level(logging.WARNING, "loraprune"):
        Pruner(with_lora(tiny_model()), config, total_steps=10, calibration=[list(range(40))]).end()
    assert caplog.text.count("40 calibration tokens are few") == 1
