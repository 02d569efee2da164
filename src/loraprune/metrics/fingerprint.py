"""What a figure was measured on, as a hash: figures of two models compare if theirs are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from loraprune.metrics.perplexity import HeldOut, HeldOutRows


class DataFingerprint:
    """A hash of all that a model is called with while it is measured.

    Tokens, labels and pixels come out of it as they enter the model. The hash therefore covers rows and their order,
    tokenizer, special tokens, length of segments and padding, and no setting has to be named. Pixels count in bfloat16,
    so that the dtype of the model does not matter.

    Args:
        held_out: rows to measure on.

    Attributes:
        held_out: the same rows; the hash is that of what is read of them.
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
        """The hash of what was read until now: ``"sha256:…"``."""
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
