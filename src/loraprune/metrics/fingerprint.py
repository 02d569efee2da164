"""Hash of the data of a figure. Figures of two models are comparable if their hashes are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from loraprune.metrics.perplexity import HeldOut, HeldOutRows


class DataFingerprint:
    """Hash of all inputs of a model during a measurement.

    Tokens, labels and pixels pass through unchanged. The hash therefore covers rows and their order, tokenizer, special
    tokens, segment length and padding, without naming any setting. Pixels are hashed in bfloat16, so the dtype of the
    model does not matter.

    Args:
        held_out: rows to measure on.

    Attributes:
        held_out: the same rows; reading them updates the hash.
    """

    def __init__(self, held_out: HeldOut | HeldOutRows) -> None:
        self._digest = hashlib.sha256()
        self.held_out = held_out
        if isinstance(held_out, HeldOut):
            for input_ids, labels in held_out.sequences:
                self._add({"input_ids": input_ids, "labels": labels})
        else:
            collate = held_out.collator
            self.held_out = replace(held_out, collator=lambda rows: self._add(collate(rows)))

    @property
    def value(self) -> str:
        """Hash of everything read so far: ``"sha256:…"``."""
        return f"sha256:{self._digest.hexdigest()}"

    def _add(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        for name in sorted(batch):
            value = batch[name]
            if isinstance(value, torch.Tensor):
                bits = value.bfloat16().view(torch.int16) if value.is_floating_point() else value.long()
                self._digest.update(f"{name} {tuple(value.shape)} ".encode())
                self._digest.update(bits.cpu().contiguous().numpy().tobytes())
            else:
                self._digest.update(f"{name} {value!r} ".encode())
        return dict(batch)
