"""The dimension ``hidden``: the width of the residual stream, which embedding, norms, blocks and head share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.architectures import PREFIX
from loraprune.architectures.spec import ArchitectureSpec, Axis
from loraprune.layers.axes import axis_length, parameters_per_position
from loraprune.layers.unwrap import base_layer, find_module
from loraprune.processes.sharding import whole_weights
from loraprune.structure.dimensions import WHOLE_MODEL, Member, PrunableDimension, Remembered

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_KIND = "hidden"


def _present(model: nn.Module, *paths: str) -> list[str]:
    """The given paths that the model has; a model without its head has them without its prefix."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    wanted = dict.fromkeys(name for path in paths for name in (path, path.removeprefix(prefix)))
    return [name for name in wanted if find_module(model, name) is not None]


def _sides(model: nn.Module, spec: ArchitectureSpec, blocks: Sequence[str]) -> Iterator[tuple[str, Axis]]:
    """Yield every layer that carries the stream, in the order of the forward pass, and the side that carries it."""
    stream = spec.stream
    assert stream is not None
    yield from ((name, "output") for name in _present(model, stream.embedding))
    for block in blocks:
        yield from ((f"{block}.{path}", "norm") for path in stream.norms)
        yield from ((f"{block}.{path}", "output") for path in stream.writers)
        yield from ((f"{block}.{path}", "input") for path in stream.readers)
    yield from ((name, "norm") for name in _present(model, stream.final_norm))
    yield from ((name, "input") for name in _present(model, *stream.heads))


def _is_tied(model: nn.Module, spec: ArchitectureSpec, head: str) -> bool:
    """Whether a head shares the weight of the embedding, which is cut once."""
    assert spec.stream is not None
    (embedding,) = _present(model, spec.stream.embedding)
    return base_layer(model.get_submodule(head)).weight is base_layer(model.get_submodule(embedding)).weight


def _adapter_trouble(model: nn.Module, spec: ArchitectureSpec, name: str) -> str | None:
    """Why peft's module around a layer cannot be cut with it; None if it can be, or there is none."""
    assert spec.stream is not None
    module: Any = model.get_submodule(name)
    embeds = name in _present(model, spec.stream.embedding)
    if embeds and hasattr(module, "modules_to_save"):
        return f"{name} is trained as a whole; remove it from modules_to_save"
    if embeds and hasattr(module, "get_base_layer"):
        return f"{name} has an adapter, and adapters of embeddings cannot be cut; remove it from target_modules"
    if not embeds and hasattr(module, "get_base_layer") and _is_tied(model, spec, name):
        return f"{name} has an adapter, but shares its weight with the embedding; remove it from target_modules"
    return None


def hidden_refusal(
    model: nn.Module, config: PretrainedConfig, spec: ArchitectureSpec, blocks: Sequence[str]
) -> str | None:
    """Return why the hidden size of a model cannot be reduced; None if it can be."""
    if spec.stream is None:
        return (
            "the description of the family does not name the layers that carry the residual stream (it does for "
            "decoders with RMS norms before their layers, such as Llama's)"
        )
    if config.model_type.startswith(PREFIX):
        return "it was saved with a modeling file of loraprune, which lists the shapes of its layers"
    width = getattr(config, spec.config.hidden, None)
    for name, axis in _sides(model, spec, blocks):
        trouble = _adapter_trouble(model, spec, name)
        if trouble is not None:
            return trouble
        if axis_length(model.get_submodule(name), axis) != width:
            return f"{name} does not have the width in its config ({width})"
    return None


def hidden_dimension(
    model: nn.Module, config: PretrainedConfig, spec: ArchitectureSpec, blocks: Sequence[str]
) -> PrunableDimension:
    """Build the dimension of the hidden size of a model that :func:`hidden_refusal` accepts.

    Its consumer is the last layer of a block that reads it.

    The attribute ``multiple`` meets the rule of the config: in Llama's, the hidden size is a multiple of the heads.
    """
    width, heads = int(getattr(config, spec.config.hidden)), int(getattr(config, spec.config.heads))
    tied = {name for name, axis in _sides(model, spec, blocks) if axis == "input" and _is_tied(model, spec, name)}
    members = [
        Member(module=name, axis=axis, segments=(1,)) for name, axis in _sides(model, spec, blocks) if name not in tied
    ]
    consumer = next(m for m in reversed(members) if m.axis == "input" and m.module.startswith(blocks[-1]))
    return PrunableDimension(
        name=_KIND,
        kind=_KIND,
        layer=WHOLE_MODEL,
        num_groups=width,
        members=tuple(member for member in members if member is not consumer),
        consumer=consumer,
        parameters_per_group=sum(parameters_per_position(model.get_submodule(m.module), m.axis) for m in members),
        fine=True,
        multiple=heads if spec.heads_divide_hidden and width % heads == 0 else 1,
        numbers=tuple(Remembered(module=name, name="in_features", factor=1) for name in sorted(tied)),
        config={spec.config.hidden: (1, 1)},
    )


_ROUNDED_OFF = "_loraprune_rounded_off"


@torch.no_grad()
def scale_norms_(model: nn.Module, dimension: PrunableDimension, positions: Sequence[int], num_groups: int) -> None:
    """Make norms over fewer channels return the same as over the wider stream with zeros in it.

    An RMS norm divides by the root of a mean. Over ``K`` channels instead of ``H``, the others being zero, the mean is
    larger by ``H/K``. So the weight is scaled by ``sqrt(H/K)`` (exact up to the norm's epsilon).

    In 16 bits, a small cut scales by less than half a rounding step. The rounding error is stored as a factor of each
    weight, which lets many small cuts end at the same weights as one large cut.

    Args:
        model: model after the cut.
        dimension: the hidden size.
        positions: positions of the channels that stayed, among those before the cut.
        num_groups: ``H``, number of channels before the cut.
    """
    for member in dimension.members:
        if member.axis != "norm":
            continue
        norm = base_layer(model.get_submodule(member.module))
        with whole_weights(norm):
            weight = norm.weight.data
            exact = weight.to(torch.promote_types(weight.dtype, torch.float32)) * (num_groups / len(positions)) ** 0.5
            rounded_off: torch.Tensor | None = getattr(norm, _ROUNDED_OFF, None)
            if rounded_off is not None:
                exact *= rounded_off.to(weight.device)[torch.as_tensor(positions, device=weight.device)]
            weight.copy_(exact)
            setattr(norm, _ROUNDED_OFF, torch.where(weight == 0, 1.0, exact / weight))


def hidden_writers(dimension: PrunableDimension) -> list[str]:
    """Return the names of the layers that write to the stream, the embedding first."""
    return [member.module for member in dimension.members if member.axis == "output"]
