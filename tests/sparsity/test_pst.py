from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from loraprune.importance.configs import Pst
from loraprune.sparsity.pst import LearntScores, kept_highest, pst_product, pst_score

ROWS, COLUMNS, RANK, SCALING = 7, 9, 3, 0.5
OPTIONS = Pst(rank=RANK, low_rank_weight=0.7, structured_weight=1.3)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaves(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """x, A, B, U, V, R, C."""
    shapes = ((2, 5, COLUMNS), (2, COLUMNS), (ROWS, 2), (ROWS, RANK), (RANK, COLUMNS), (ROWS, 1), (1, COLUMNS))
    return tuple(draw(seed, *shape, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes))


def weight(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return draw(11, ROWS, COLUMNS, dtype=dtype)


class TestScore:
    def test_it_is_the_sum_of_the_three_parts(self) -> None:
        _, a, b, u, v, r, c = (tensor.detach().float() for tensor in leaves())
        score = pst_score(weight().float(), [(a, b, SCALING)], LearntScores(u, v, r, c), OPTIONS)
        for i in range(ROWS):
            for j in range(COLUMNS):
                free = abs(float(weight()[i, j]) + SCALING * float(b[i] @ a[:, j]))
                learnt = 0.7 * float(u[i] @ v[:, j]) + 1.3 * float(r[i, 0] + c[0, j])
                assert float(score[i, j]) == pytest.approx(free + learnt, abs=1e-5)

    def test_at_the_start_it_is_the_magnitude(self) -> None:
        learnt = LearntScores.fresh(ROWS, COLUMNS, RANK, torch.Generator().manual_seed(0), torch.device("cpu"))
        a, b = torch.ones(2, COLUMNS), torch.zeros(ROWS, 2)
        torch.testing.assert_close(
            pst_score(weight().float(), [(a, b, SCALING)], learnt, OPTIONS), weight().float().abs()
        )
        assert bool(learnt.v.abs().min() > 0)

    def test_the_weight_is_not_changed(self) -> None:
        w, (_, a, b, *scores) = weight().float(), (tensor.detach().float() for tensor in leaves())
        before = w.clone()
        pst_score(w, [(a, b, SCALING)], LearntScores(*scores), OPTIONS)
        assert torch.equal(w, before)


class TestMask:
    @pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.77, 1.0])
    def test_the_share_is_exact(self, ratio: float) -> None:
        kept = kept_highest(weight(), ratio)
        assert int((~kept).sum()) == round(ratio * ROWS * COLUMNS)

    def test_the_highest_of_the_whole_matrix_stay(self) -> None:
        kept = kept_highest(weight(), 0.5)
        assert weight()[kept].min() > weight()[~kept].max()

    def test_of_equal_scores_the_first_go(self) -> None:
        kept = kept_highest(torch.ones(2, 3), 0.5)
        assert kept.tolist() == [[False] * 3, [True] * 3]


class TestProduct:
    @pytest.mark.parametrize("masked", [True, False])
    def test_value_and_gradients_are_those_of_plain_autograd(self, masked: bool) -> None:
        """The mask is written as score - stop(score) + M, which is the straight-through rule."""
        mask = kept_highest(draw(12, ROWS, COLUMNS), 0.4) if masked else torch.ones(ROWS, COLUMNS, dtype=torch.bool)
        ours, theirs = leaves(), leaves()
        x, a, b, *scores = ours
        actual = pst_product(x, weight(), mask if masked else None, (a, b, SCALING), LearntScores(*scores), OPTIONS)
        x, a, b, u, v, r, c = theirs
        learnt = 0.7 * (u @ v) + 1.3 * (r + c)
        expected = F.linear(x, (weight() + SCALING * b @ a) * (learnt - learnt.detach() + mask))
        torch.testing.assert_close(actual, expected)
        actual.pow(3).sum().backward()
        expected.pow(3).sum().backward()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad)

    def test_scores_that_are_final_are_left_out(self) -> None:
        x, a, b, *_ = leaves()
        mask = kept_highest(weight(), 0.5)
        pst_product(x, weight(), mask, (a, b, SCALING), None, OPTIONS).sum().backward()
        expected = x.detach().sum((0, 1)).expand(ROWS, COLUMNS) * mask @ (SCALING * a.detach()).T
        torch.testing.assert_close(b.grad, expected)

    def test_autocast_changes_the_precision_alone(self) -> None:
        x, a, b, *scores = leaves(torch.float32)
        mask = kept_highest(weight(), 0.5)
        arguments = (x, weight(torch.float32), mask, (a, b, SCALING), LearntScores(*scores), OPTIONS)
        exact = pst_product(*arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = pst_product(*arguments)
        half.sum().backward()
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.1)
        assert all(tensor.grad.dtype == torch.float32 for tensor in (a, b, *scores))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "pst.rank is 0; it must lie in"),
        ({"low_rank_weight": -1.0}, "low_rank_weight is -1.0"),
        ({"structured_weight": float("nan")}, "structured_weight is nan"),
        ({"learning_rate": 0.0}, "pst.learning_rate is 0.0; it must be above 0"),
    ],
)
def test_options_check_themselves(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pst(**changes)
