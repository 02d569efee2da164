"""From a step of a model with a few blocks to that of one with many that are alike: all grows by equal steps."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.simulated_step import PARTS, SimulatedStep

FEW = 3
"""Blocks that say what many take: the first (whose input needs no gradient), one between, and the last."""


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What one training step takes.

    Attributes:
        weights: bytes of everything that is not trained.
        adapter: bytes of what is trained, with gradients and the optimizer's states.
        states: bytes of what is trained and of the optimizer's states, without gradients.
        activations: bytes that wait for the backward pass when the loss is known.
        peak: the most bytes that are alive at any moment.
        moment: when that is: ``forward``, ``loss``, ``backward`` or ``update``.
        flops: floating point operations of one micro-batch.
    """

    weights: float
    adapter: float
    states: float
    activations: float
    peak: float
    moment: str
    flops: float


def step_size(step: SimulatedStep, depth: int) -> StepSize:
    """The size of a step of a model with ``depth`` blocks.

    Args:
        step: of the same model; with fewer blocks, of which there must be :data:`FEW`, all alike.
        depth: blocks of the model asked about.
    """
    more = depth - step.blocks
    assert more == 0 or step.blocks == FEW
    parts = {name: step.parts[name] + more * step.of_block[name] for name in PARTS}
    peaks, waiting = _peaks(step, more)
    moment = max(peaks, key=lambda name: peaks[name])
    between = sum(count for name, count in step.flops.items() if name.endswith(" 1"))
    scores = step.flops.get("update", 0) / step.blocks
    return StepSize(
        weights=parts["weights"],
        adapter=parts["adapter"] + parts["optimizer"] + parts["gradients"],
        states=parts["adapter"] + parts["optimizer"],
        activations=step.activations + more * waiting,
        peak=peaks[moment],
        moment="loss" if "loss" in moment else moment.partition(" ")[0],
        flops=sum(step.flops.values()) + more * (between + scores),
    )


def _peaks(step: SimulatedStep, more: int) -> tuple[dict[str, float], float]:
    """Peaks of segments in the deeper model, and what each block leaves for the backward pass.

    From block to block live bytes change by equal steps, so that they are largest at the first ones or the last one.
    """
    if more == 0:
        return dict(step.peaks), 0.0
    starts, last = step.starts, step.blocks - 1
    # Autocast keeps copies of trained weights until the forward pass is over.
    forwards = starts[f"forward {last}"] - starts[f"forward {last - 1}"]
    outside = step.parts["gradients"] - step.blocks * step.of_block["gradients"]
    made = (starts["update"] - starts["forward"] - (0 if step.left else outside)) / step.blocks
    # What functions keep by themselves, and not by autograd, stays until the loss goes (inputs of LLM.int8's layers).
    stays = starts["backward end"] - starts["update"]
    # The first block, whose input needs no gradient, keeps less.
    less = forwards - (starts["forward 1"] - starts["forward 0"])
    kept = (stays + less if stays > less else stays) / step.blocks
    # A block's backward pass frees what waited for it and leaves what it has made: gradients.
    freed = starts[f"backward {last}"] - starts[f"backward {last - 1}"] + made
    waiting = freed + kept
    held: float = sum(step.of_block[name] for name in ("weights", "adapter", "optimizer"))
    if step.left:
        held += (step.left - outside) / step.blocks
    # The first block needs no gradient of its input, so that the second one may take more.
    growth = {
        "forward": 0,
        "forward 0": 0,
        f"forward {last}": forwards,
        "forward loss": forwards,
        "backward loss": waiting,
        f"backward {last}": waiting,
        "backward 1": made + kept,
        "backward 0": made + kept,
        "backward end": made + kept,
        "update": made,
    }
    return {name: step.peaks[name] + more * (held + each) for name, each in growth.items()}, waiting
