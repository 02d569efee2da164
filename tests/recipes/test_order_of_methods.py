"""On trained checkpoints, sparse methods come out in the order of the papers."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune import OneshotConfig, RunOptions, oneshot

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the trained checkpoints and texts of ../shared/data"),
]


def perplexities(model: str, method: str, sparsity: str) -> tuple[float, float]:
    """Of the dense and of the sparse model."""
    text = SHARED / "text"
    result = oneshot(
        SHARED / "models" / model,
        text / "tinystories_train.jsonl",
        OneshotConfig(criterion=method, sparsity=sparsity, calibration_sequences=64, max_length=128),
        options=RunOptions(eval_data=text / "tinystories_valid.txt", eval_sequences=64),
    )
    return result.metrics["dense"]["perplexity"], result.metrics["pruned"]["perplexity"]


@pytest.mark.full
def test_sparsegpt_is_ahead_of_wanda_and_wanda_of_magnitude() -> None:
    found = {method: perplexities("stories260K", method, "0.5") for method in ("sparsegpt", "wanda", "magnitude")}
    dense = found["wanda"][0]
    assert dense < found["sparsegpt"][1] < found["wanda"][1] < found["magnitude"][1]


@pytest.mark.full
def test_the_freer_the_pattern_the_better() -> None:
    found = [perplexities("babyllama105", "sparsegpt", sparsity) for sparsity in ("0.5", "4:8", "2:4")]
    assert found[0][0] < found[0][1] < found[1][1] < found[2][1]
