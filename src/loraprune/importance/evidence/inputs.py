"""Statistics of the inputs of layers during training, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from loraprune.calibration.features import FeatureStatistics
from loraprune.layers.unwrap import base_model


class EnteringFeatures:
    """Watches layers, only in forward passes that a backward pass may follow.

    Under gradient checkpointing a block may run twice. Its tokens then count twice, which does not change means.
    Padding is left out if the model is called with a mask of shape ``(batch, tokens)`` and the layer sees one row per
    token. An encoder-decoder has two masks, so all of its tokens count.

    Args:
        model: the transformers model.
        names: names of the layers.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        base = base_model(model)
        self._statistics: dict[str, FeatureStatistics] = {}
        self._real: torch.Tensor | None = None
        self._handles = []
        if not getattr(base.config, "is_encoder_decoder", False):
            self._handles.append(base.register_forward_pre_hook(self._note_mask, prepend=True, with_kwargs=True))
        self._handles += [
            # Before any mask on a layer, so the statistics cover all inputs.
            base.get_submodule(name).register_forward_pre_hook(self._hook(name), prepend=True)
            for name in dict.fromkeys(names)
        ]

    def _note_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._real = None
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not bool(mask.all()):
            self._real = mask.bool()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def take(module: nn.Module, args: tuple[Any, ...]) -> None:
            if torch.is_grad_enabled():
                self._statistics.setdefault(name, FeatureStatistics(moment=False)).add(self._rows(args[0]))

        return take

    def _rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """The rows that are not padding."""
        real = self._real
        if real is None:
            return inputs
        if inputs.shape[:-1] == real.shape:
            return inputs[real.to(inputs.device)]
        if inputs.shape[:-1] == (real.numel(),):
            return inputs[real.flatten().to(inputs.device)]
        return inputs

    def take(self) -> dict[str, FeatureStatistics]:
        """Return statistics by layer since the last call, over all processes; layers without inputs are left out."""
        taken, self._statistics = self._statistics, {}
        return {name: statistics.over_processes_() for name, statistics in taken.items()}

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
