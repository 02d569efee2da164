"""Models without weights for an estimate: dense, cut, quantized, with an adapter, and with fewer blocks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import meta_model
from loraprune.checkpoint.source import ModelSource
from loraprune.importance.configs import LoraGuided
from loraprune.measure.estimation.depth import FEW
from loraprune.measure.estimation.quantized import quantize_shapes_
from loraprune.structure.blocks import write_depth_
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_
from loraprune.tasks.lora import lora_config
from loraprune.tasks.registry import tunable_task
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from loraprune.measure.estimation.config import EstimateConfig


@dataclass(frozen=True, kw_only=True)
class ShapeModels:
    """Builds the models of an estimate.

    Attributes:
        source: source of the dense model.
        structure: its description, with the kinds to prune.
        task: task of the model.
        alike: whether its blocks are alike, so a few of them represent many.
    """

    source: ModelSource
    structure: Structure
    task: Task
    alike: bool

    @classmethod
    def of(cls, source: ModelSource, kinds: Any, keep_layers: Any) -> ShapeModels:
        """Describe a model.

        Raises:
            ValueError: it has no such dimensions or layers, or its task is not supported.
        """
        task = tunable_task(source)
        structure = describe(source.shapes, kinds, keep_layers)
        alike = "blocks" in (*structure.whole, *structure.kinds)
        return cls(source=source, structure=structure, task=task, alike=alike)

    @property
    def few(self) -> int:
        """Number of blocks that is enough to simulate."""
        return min(FEW, len(self.structure.blocks)) if self.alike else len(self.structure.blocks)

    def plain(self, blocks: int, dtype: torch.dtype) -> tuple[Any, Structure]:
        """Return the model with this many blocks."""
        config = copy.deepcopy(self.source.config)
        total = len(self.structure.blocks)
        if blocks != total:
            write_depth_(config, self.structure.spec, range(blocks), total)
        model: Any = meta_model(config, self.source.auto_class)
        _fix_frequencies_(model)
        kinds = [kind for kind in self.structure.kinds if kind != "blocks"] or None
        keep = tuple(sorted(self.structure.protected)) if blocks == total else ()
        return model.to(dtype), describe(model, kinds, keep)

    def pruned(self, blocks: int, plan: Plan | None, dtype: torch.dtype) -> tuple[Any, Structure]:
        """Return the model after the cut. The plan may be of a model with more blocks; None cuts nothing."""
        model, structure = self.plain(blocks, dtype)
        return model, structure if plan is None else cut_shapes_(model, structure, plan)

    def adapted(
        self,
        blocks: int,
        plan: Plan | None,
        dtype: torch.dtype,
        settings: EstimateConfig,
    ) -> tuple[Any, Structure]:
        """Return the model after the cut, with its base quantized and with an adapter."""
        from peft import get_peft_model

        model, structure = self.plain(blocks, dtype)
        every_group = isinstance(settings.pruning.criterion, LoraGuided)
        adapter = lora_config(settings.lora, structure, model, self.task, every_group=every_group)
        if plan is not None:
            structure = cut_shapes_(model, structure, plan)
        if settings.quantization is not None:
            quantize_shapes_(model, settings.quantization, dtype, settings.device)
            adapter.fan_in_fan_out = False
        return get_peft_model(model, adapter), structure

    def inputs(self, rows: int, tokens: int) -> dict[str, torch.Tensor]:
        """Inputs of the model besides labels."""
        if self.task.name == "causal-lm":
            # With a mask, models that create one of their own do not check for packed rows.
            return {"input_ids": _numbers(rows, tokens), "attention_mask": _numbers(rows, tokens)}
        if self.task.name == "text-to-text":
            return {"input_ids": _numbers(rows, tokens), "decoder_input_ids": _numbers(rows, tokens)}
        if self.task.has_tokenizer:
            return {"input_ids": _numbers(rows, tokens)}
        size = getattr(self.source.config, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = int(getattr(self.source.config, "num_channels", 3))
        return {"pixel_values": torch.empty((rows, channels, height, width), device="meta")}

    def labels(self, rows: int, tokens: int) -> torch.Tensor | None:
        """Labels for the model's own loss; None for causal language models, which use trl's loss."""
        if self.task.name == "causal-lm":
            return None
        return _numbers(rows, tokens) if self.task.writes_text else _numbers(rows)


def _fix_frequencies_(model: Any) -> None:
    """Use the rotary positions of short inputs if they depend on the input length, because shapes have no values."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            module.rope_type = {layers: _fixed(kind) for layers, kind in kinds.items()}
        elif isinstance(kinds, str):
            module.rope_type = _fixed(kinds)


def _fixed(kind: str) -> str:
    return "default" if "dynamic" in kind or kind == "longrope" else kind


def _numbers(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.long, device="meta")


def cut_shapes_(model: Any, structure: Structure, plan: Plan) -> Structure:
    """Cut a model on the meta device to a plan, and return the remaining structure."""
    full = Plan.full(structure)
    kept = {name: plan.kept[name] for name in full.kept if name in plan.kept}
    slice_(model, structure, full, Plan({**full.kept, **kept}))
    return structure.shrunk({name: len(groups) for name, groups in kept.items()})
