from __future__ import annotations

import copy

import pytest
import torch
from tests.models import tiny_model, token_ids

import loraprune.metrics.divergence as metrics
from loraprune.metrics.divergence import Divergence, held_back

ROWS = [token_ids(1, length, seed=length)[0] for length in (12, 9, 12)]


def noisy(model: torch.nn.Module) -> torch.nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return other


def test_it_is_the_mean_over_tokens() -> None:
    model = tiny_model("llama")
    other = noisy(model)
    each = []
    for row in ROWS:
        with torch.no_grad():
            first, second = (m.eval()(row[None]).logits[0].log_softmax(-1) for m in (model, other))
        each.append((first.exp() * (first - second)).sum(-1))
    assert Divergence(model, ROWS).of(other) == pytest.approx(float(torch.cat(each).mean()), rel=2e-2)


def test_a_model_is_nearly_no_way_from_itself() -> None:
    model = tiny_model("llama")
    assert Divergence(model, ROWS).of(model) == pytest.approx(0.0, abs=1e-4)


def test_only_as_many_rows_are_kept_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(metrics, "MOST_LOGITS", 13 * model.config.vocab_size)
    assert len(Divergence(model, ROWS)._rows) == 1


def test_what_gives_nan_is_infinitely_far() -> None:
    model = tiny_model("llama")
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[0] = float("nan")
    assert Divergence(model, ROWS).of(broken) == float("inf")


@pytest.mark.parametrize(("count", "fitted", "judging"), [(16, 14, 2), (8, 7, 1), (3, 2, 1), (1, 1, 1)])
def test_rows_that_judge_are_not_fitted_on(count: int, fitted: int, judging: int) -> None:
    rows = [torch.tensor([number]) for number in range(count)]
    kept, judged = held_back(rows, 8)
    assert (len(kept), len(judged)) == (fitted, judging)
    assert count == 1 or not {int(row) for row in kept} & {int(row) for row in judged}
