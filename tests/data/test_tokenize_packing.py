from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loraprune.data.tokenize import IGNORED_LABEL, EncodedRow, pack_documents, pack_rows


def rows_of(lengths: list[int]) -> list[EncodedRow]:
    """Rows whose tokens are numbered through, so that any order or loss shows."""
    ids = iter(range(sum(lengths)))
    rows = [[next(ids) for _ in range(length)] for length in lengths]
    return [EncodedRow(input_ids=row, labels=[IGNORED_LABEL, *row[1:]]) for row in rows]


lengths_lists = st.lists(st.integers(1, 12), max_size=8)


@given(lengths_lists, st.integers(2, 6))
def test_documents_become_full_blocks_in_order_and_only_a_tail_is_lost(lengths: list[int], max_length: int) -> None:
    blocks = list(pack_documents(rows_of(lengths), max_length))
    total = sum(lengths)
    kept = total - total % max_length if total >= max_length else total
    assert [token for block in blocks for token in block.input_ids] == list(range(kept))
    assert all(len(block) == max_length for block in blocks) or (len(blocks) == 1 and total < max_length)
    assert all(len(block.labels) == len(block.input_ids) for block in blocks)


@given(lengths_lists)
def test_packed_rows_stay_whole_and_in_order(lengths: list[int]) -> None:
    rows = rows_of(lengths)
    blocks = list(pack_rows(rows, 12))
    assert [token for block in blocks for token in block.input_ids] == list(range(sum(lengths)))
    assert [label for block in blocks for label in block.labels] == [label for row in rows for label in row.labels]
    starts = {block.input_ids[0] for block in blocks}
    assert starts <= {row.input_ids[0] for row in rows}
    assert all(len(block) <= 12 for block in blocks)


def test_rows_are_joined_as_long_as_they_fit() -> None:
    assert [len(block) for block in pack_rows(rows_of([4, 4, 4, 5, 8, 1]), 12)] == [12, 5, 9]
