"""The layers of a model that loraprune does not know, as text and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loraprune.cli.progress import count

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.checkpoint.undescribed import Undescribed
    from loraprune.structure.drafting import BlockKind, Layer

SHOWN_INDICES = 8


def as_values(model: str, model_type: str, seen: Undescribed) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "model": model,
        "model_type": model_type,
        "model_class": seen.model_class,
        "described": False,
        "parameters": seen.num_parameters,
        "stacks": [asdict(stack) for stack in seen.stacks],
        "draft": seen.draft,
    }


def show(console: Console, model: str, model_type: str, seen: Undescribed, *, with_draft: bool) -> None:
    """Print the layers of every kind of block, and the start of a description."""

    def line(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    line(f"{model}: {seen.model_class} ({model_type}), {count(seen.num_parameters)} parameters.")
    line(f"loraprune has no description of {model_type!r}. Its layers, and a start for a description:")
    for stack in seen.stacks:
        for kind in stack.kinds:
            line()
            line(f"{stack.path}: {_blocks_text(kind)}")
            width = max(len(layer.name) for layer in kind.layers)
            for layer in kind.layers:
                line(f"  {layer.name:{width}}  {_layer_text(layer)}")
    if not seen.stacks:
        line("It has no list of blocks with linear layers in them.")
    if with_draft:
        line()
        line(seen.draft.rstrip())
        line()
        line("--draft FILE.yaml writes this start to a file; complete it, and pass it with --architecture FILE.yaml.")


def _blocks_text(kind: BlockKind) -> str:
    indices = ", ".join(map(str, kind.indices[:SHOWN_INDICES]))
    more = ", ..." if len(kind.indices) > SHOWN_INDICES else ""
    return f"{len(kind.indices)} block{'s' if len(kind.indices) > 1 else ''} ({indices}{more})"


def _layer_text(layer: Layer) -> str:
    if layer.inputs is None or layer.outputs is None:
        return f"{layer.type} {'x'.join(map(str, layer.shape))}"
    experts = f"{layer.experts} x " if layer.experts is not None else ""
    return f"{layer.type} {experts}{layer.inputs} -> {layer.outputs}{' with bias' if layer.bias else ''}"
