from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from loraprune.pruning.calibration_data import BATCH, draw_batches, draw_calibration


def dataset(*lengths: int) -> Dataset:
    """Rows whose every token is the row's own number."""
    return Dataset.from_dict({"input_ids": [[number] * length for number, length in enumerate(lengths)]})


def drawn_rows(rows: Any, count: int, seed: int = 0) -> list[int]:
    return [int(sequence[0]) for sequence in draw_calibration(rows, count, seed)]


def test_sequences_are_int64_and_as_long_as_their_rows() -> None:
    sequences = draw_calibration(dataset(3, 5, 4), 3, seed=0)
    assert {sequence.dtype for sequence in sequences} == {torch.int64}
    assert {int(sequence[0]): len(sequence) for sequence in sequences} == {0: 3, 1: 5, 2: 4}


def test_rows_are_drawn_without_replacement() -> None:
    found = drawn_rows(dataset(*[4] * 20), 15)
    assert len(set(found)) == len(found) == 15


def test_fewer_rows_than_asked_for_are_all_drawn() -> None:
    assert sorted(drawn_rows(dataset(4, 4, 4), 10)) == [0, 1, 2]


def test_rows_of_one_token_are_passed_over_and_made_up_for() -> None:
    assert sorted(drawn_rows(dataset(1, 4, 1, 4, 4), 3)) == [1, 3, 4]


def test_the_same_seed_draws_the_same_rows_and_another_seed_others() -> None:
    rows = dataset(*[4] * 50)
    assert drawn_rows(rows, 10, seed=7) == drawn_rows(rows, 10, seed=7)
    assert drawn_rows(rows, 10, seed=7) != drawn_rows(rows, 10, seed=8)


def test_lists_of_rows_serve_as_well_as_data_sets() -> None:
    assert drawn_rows([{"input_ids": [0, 0]}, {"input_ids": torch.tensor([1, 1])}], 2) in ([0, 1], [1, 0])


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(iter([{"input_ids": [1, 2]}]), id="no length"),
        pytest.param(dataset(), id="no rows"),
        pytest.param(Dataset.from_dict({"text": ["a b"]}), id="no token ids"),
    ],
)
def test_data_that_cannot_be_drawn_from_is_refused_with_both_ways_out(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"calibration=\[\.\.\.\]\) or repair="):
        draw_calibration(rows, 4, seed=0)


def test_data_without_a_sequence_of_two_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="No row of the data has two tokens or more"):
        draw_calibration(dataset(1, 1), 4, seed=0)


def batch_of(rows: list[Any]) -> dict[str, Any]:
    """One row of ``values`` (of any length) and ``number`` as a batch."""
    return {
        "values": torch.tensor([row["values"] for row in rows]),
        "labels": torch.tensor([row["number"] for row in rows]),
        "note": "no tensor",
    }


class TestBatches:
    def rows(self, lengths: list[int]) -> Dataset:
        return Dataset.from_dict({"values": [[0.5] * n for n in lengths], "number": list(range(len(lengths)))})

    def test_rows_of_equal_shapes_share_a_batch_and_nothing_is_padded(self) -> None:
        batches = draw_batches(self.rows([3, 2, 3, 2, 3]), batch_of, 5, 0, torch.float32)
        assert sorted(tuple(batch["values"].shape) for batch in batches) == [(2, 2), (3, 3)]
        assert sorted(number for batch in batches for number in batch["labels"].tolist()) == [0, 1, 2, 3, 4]
        assert all(set(batch) == {"values", "labels"} for batch in batches)

    def test_batches_stay_small(self) -> None:
        batches = draw_batches(self.rows([1] * (2 * BATCH + 1)), batch_of, 100, 0, torch.float32)
        assert [len(batch["labels"]) for batch in batches] == [BATCH, BATCH, 1]

    def test_the_same_seed_draws_the_same_rows(self) -> None:
        drawn = [draw_batches(self.rows([1] * 40), batch_of, 5, seed, torch.float32)[0]["labels"] for seed in (1, 1, 2)]
        assert len(drawn[0]) == 5
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])

    def test_fractions_take_the_dtype_of_the_model_and_whole_numbers_keep_theirs(self) -> None:
        (batch,) = draw_batches(self.rows([1]), batch_of, 1, 0, torch.bfloat16)
        assert (batch["values"].dtype, batch["labels"].dtype) == (torch.bfloat16, torch.int64)

    def test_data_without_a_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="it needs a length"):
            draw_batches(iter([1]), batch_of, 1, 0, torch.float32)
