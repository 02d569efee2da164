"""The time of a forward pass of random tokens, for language models that take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from loraprune.measure.benchmark.inference import call_latency


def forward_latency(
    models: Mapping[str, PreTrainedModel], *, batch_size: int = 1, tokens: int, repeats: int = 10, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of a pass, by name of the model; each stays on its device."""

    def inputs(model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
        ids = torch.randint(model.config.vocab_size, (batch_size, tokens), device=device)
        return {"input_ids": ids, "use_cache": False}

    return call_latency(models, inputs, repeats=repeats, warmup=warmup)
