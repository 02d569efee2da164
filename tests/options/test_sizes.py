from __future__ import annotations

import math
from typing import Any

import pytest

from loraprune.options.sizes import byte_count, share_or_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        ("1.5GiB", 3 * 2**29),
        ("2k", 2000),
        (".5G", 500_000_000),
        ("1e0", None),
        ("12", 12),
        (12.0, 12),
        ("4TB", 4 * 10**12),
    ],
)
def test_sizes(text: Any, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="target_size is '1e0'; it must be a size such as 500MB"):
            byte_count("target_size", text)
    else:
        assert byte_count("target_size", text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5XB", "0", 0, -1, math.nan, math.inf, True, "5iB", "nan"])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"target_size is .*; it must be a size such as 500MB"):
        byte_count("target_size", text)


@pytest.mark.parametrize(("text", "expected"), [("0.5", 0.5), (0.25, 0.25), ("64MB", 64_000_000), (1000, 1000)])
def test_shares_and_sizes(text: Any, expected: float) -> None:
    assert share_or_bytes("cache", text) == expected


@pytest.mark.parametrize("text", ["half", "-0.5", "0", 0.0, math.nan])
def test_what_is_neither_is_refused(text: Any) -> None:
    with pytest.raises(
        ValueError, match=r"a share of what the dense model needs, such as 0\.5, or a size such as 64MB"
    ):
        share_or_bytes("cache", text)
