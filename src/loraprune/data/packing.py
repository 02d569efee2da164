"""Rows joined to longer ones, so that no computation goes to padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loraprune.data.tokenize import EncodedRow


def pack_documents(documents: Iterable[EncodedRow], max_length: int) -> Iterator[EncodedRow]:
    """Join documents and cut them in blocks of exactly ``max_length`` tokens.

    The tail that fills no block is dropped, unless it is all there is.
    """
    rest = EncodedRow(input_ids=[], labels=[])
    is_first = True
    for document in documents:
        joined = rest + document
        end = len(joined) - len(joined) % max_length
        for start in range(0, end, max_length):
            yield joined[start : start + max_length]
            is_first = False
        rest = joined[end:]
    if is_first and len(rest):
        yield rest


def pack_rows(rows: Iterable[EncodedRow], max_length: int) -> Iterator[EncodedRow]:
    """Join whole rows, in their order, as long as they fit in ``max_length`` tokens; no row is cut.

    The rows of a block see each other, as documents do in packed text.
    """
    block: EncodedRow | None = None
    for row in rows:
        if block is not None and len(block) + len(row) <= max_length:
            block = block + row
        else:
            if block is not None:
                yield block
            block = row
    if block is not None:
        yield block
