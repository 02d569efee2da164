"""Models without weights for an estimate: as they are, cut, quantized, with an adapter, and with fewer blocks."""

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
    """Makes the models of an estimate.

    Attributes:
        source: of the model as it is.
        structure: its description, with the kinds that would be pruned.
        task: that it is tuned for.
        alike: whether its blocks are, so that a few of them say what many take.
    """

    source: ModelSource
    structure: Structure
    task: Task
    alike: bool

    @classmethod
    def of(cls, source: ModelSource, kinds: Any, keep_layers: Any) -> ShapeModels:
        """Describe a model.

        Raises:
            ValueError: it has no such dimensions or layers, or is made for something that it cannot be tuned for.
        """
        task = tunable_task(source)
        structure = describe(source.shapes, kinds, keep_layers)
        alike = "blocks" in (*structure.whole, *structure.kinds)
        return cls(source=source, structure=structure, task=task, alike=alike)

    @property
    def few(self) -> int:
        """Blocks that are enough to look at."""
        return min(FEW, len(self.structure.blocks)) if self.alike else len(self.structure.blocks)

    def plain(self, blocks: int, dtype: torch.dtype) -> tuple[Any, Structure]:
        """The model with so many blocks."""
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
        """The same, cut; a plan of a model with more blocks will do, and None leaves it as it is."""
        model, structure = self.plain(blocks, dtype)
        return model, structure if plan is None else cut_shapes_(model, structure, plan)

    def adapted(
        self,
        blocks: int,
        plan: Plan | None,
        dtype: torch.dtype,
        settings: EstimateConfig,
    ) -> tuple[Any, Structure]:
        """The same, cut, with its base quantized and an adapter on it."""
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
        """What the model is called with, beside labels."""
        if self.task.name == "causal-lm":
            # With a mask, models that make one of their own do not look for rows that were packed.
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
        """For the model's own loss; None of causal language models, whose loss is trl's."""
        if self.task.name == "causal-lm":
            return None
        return _numbers(rows, tokens) if self.task.writes_text else _numbers(rows)


def _fix_frequencies_(model: Any) -> None:
    """Let rotary positions that depend on the length of the input be those of short ones: shapes have no values."""
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
    """Cut a model on the meta device to what a plan keeps of its dimensions; gives what is left of its structure."""
    full = Plan.full(structure)
    kept = {name: plan.kept[name] for name in full.kept if name in plan.kept}
    slice_(model, structure, full, Plan({**full.kept, **kept}))
    return structure.shrunk({name: len(groups) for name, groups in kept.items()})
