from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from loraprune.data.calibration import calibration_sequences
from loraprune.data.formats import DataFormat, PreparedData


def prepared(rows: list[list[int]]) -> PreparedData:
    return PreparedData(
        dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        format=DataFormat.TEXT,
        num_tokens=0,
        num_trained_tokens=0,
        packed=False,
    )


ROWS = [[i, i + 100, i + 200] for i in range(50)]


def test_rows_are_drawn_without_replacement() -> None:
    drawn = [sequence.tolist() for sequence in calibration_sequences(prepared(ROWS), 20, seed=0)]
    assert len(drawn) == 20
    assert len({row[0] for row in drawn}) == 20
    assert all(row in ROWS for row in drawn)


def test_fewer_rows_than_wanted_are_all_drawn() -> None:
    drawn = calibration_sequences(prepared(ROWS), 80, seed=0)
    assert sorted(sequence.tolist() for sequence in drawn) == ROWS


def test_a_seed_decides_the_draw() -> None:
    first, again, other = (calibration_sequences(prepared(ROWS), 10, seed=seed) for seed in (3, 3, 4))
    assert [sequence.tolist() for sequence in first] == [sequence.tolist() for sequence in again]
    assert [sequence.tolist() for sequence in first] != [sequence.tolist() for sequence in other]


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    calibration_sequences(prepared(ROWS), 10, seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_sequences_are_unpadded_vectors_of_int64() -> None:
    rows = [[1, 2], [3, 4, 5, 6]]
    for sequence in calibration_sequences(prepared(rows), 2, seed=0):
        assert sequence.dtype == torch.int64
        assert sequence.tolist() in rows


def test_rows_of_one_token_are_left_out() -> None:
    drawn = calibration_sequences(prepared([[1], [2, 3], [4], []]), 2, seed=0)
    assert [sequence.tolist() for sequence in drawn] == [[2, 3]]


def test_data_without_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="no sequence of two tokens"):
        calibration_sequences(prepared([[1], [2]]), 2, seed=0)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count={count}"):
        calibration_sequences(prepared(ROWS), count, seed=0)
