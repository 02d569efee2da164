"""What a criterion can be told, and which criterion listens to what."""

from __future__ import annotations

from dataclasses import dataclass, field

from loraprune.importance.compresso import CompressoOptions

REDUCED = ("taylor", "lora", "magnitude")
"""Criteria that look at the weights of every layer of a group, and add up (or otherwise reduce) what the layers say."""


@dataclass(frozen=True, kw_only=True)
class CriterionOptions:
    """Which criterion, and how it scores.

    Attributes:
        name: one of :data:`loraprune.importance.registry.CRITERIA`.
        lora_form: of ``lora``, see :class:`loraprune.importance.lora.LoraGuided`.
        taylor_form: of ``taylor``, see :mod:`loraprune.importance.taylor`.
        group_reduction: of ``taylor``, ``lora`` and ``magnitude``: how the scores that the layers of a group give it
            become one, see :func:`loraprune.importance.criteria_reductions.reduced`.
        offload_grads: of ``taylor``: keep accumulated gradients in the machine's memory.
        seed: of ``random`` and ``compresso``.
        compresso: of ``compresso``.
    """

    name: str = "fisher"
    lora_form: str = "squared"
    taylor_form: str = "squared"
    group_reduction: str = "sum"
    offload_grads: bool = False
    seed: int = 0
    compresso: CompressoOptions = field(default_factory=CompressoOptions)


LISTENERS: dict[str, tuple[str, ...]] = {
    "lora_form": ("lora",),
    "taylor_form": ("taylor",),
    "group_reduction": REDUCED,
    "offload_grads": ("taylor",),
}
"""Options, and the criteria that they are of."""


def check_options(options: CriterionOptions, what: str = "criterion") -> None:
    """Make sure that nothing is asked of a criterion that is for another one; ``what`` is what messages call it.

    Raises:
        ValueError: an option would have no effect.
    """
    default = CriterionOptions()
    for option, names in LISTENERS.items():
        if getattr(options, option) != getattr(default, option) and options.name not in names:
            listed = " or ".join(filter(None, (", ".join(map(repr, names[:-1])), repr(names[-1]))))
            raise ValueError(
                f"{option} is an option of the {what} {listed}, and the {what} is {options.name!r}. Leave it out."
            )
