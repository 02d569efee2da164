"""Extrapolation of a step from a few equal blocks to many: every block adds the same amount."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.simulated_step import PARTS, SimulatedStep

FEW = 3
"""Blocks that represent many: the first (whose input needs no gradient), a middle one, and the last."""


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """Memory and arithmetic of one training step.

    Attributes:
        weights: bytes of everything that is not trained.
        adapter: bytes of trained parameters, with gradients and the optimizer's states.
        states: bytes of trained parameters and of the optimizer's states, without gradients.
        activations: bytes saved for the backward pass once the loss is computed.
        peak: peak of live bytes.
        moment: phase of the peak: ``forward``, ``loss``, ``backward`` or ``update``.
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
    """Return the size of a step of a model with ``depth`` blocks.

    Args:
        step: step of the same model. It may have fewer blocks: then exactly :data:`FEW`, all alike.
        depth: number of blocks of the estimated model.
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
    """Peaks of segments in the deeper model, and the bytes that each block saves for the backward pass.

    Live bytes change by equal steps from block to block, so the peak is at one of the first blocks or the last one.
    """
    if more == 0:
        return dict(step.peaks), 0.0
    starts, last = step.starts, step.blocks - 1
    # Autocast keeps copies of trained weights until the end of the forward pass.
    forwards = starts[f"forward {last}"] - starts[f"forward {last - 1}"]
    outside = step.parts["gradients"] - step.blocks * step.of_block["gradients"]
    made = (starts["update"] - starts["forward"] - (0 if step.left else outside)) / step.blocks
    # Tensors kept by functions and not by autograd (inputs of LLM.int8's layers) stay until the loss is freed.
    stays = starts["backward end"] - starts["update"]
    # The first block, whose input needs no gradient, saves less.
    less = forwards - (starts["forward 1"] - starts["forward 0"])
    kept = (stays + less if stays > less else stays) / step.blocks
    # A block's backward pass frees its saved tensors and adds gradients.
    freed = starts[f"backward {last}"] - starts[f"backward {last - 1}"] + made
    waiting = freed + kept
    held: float = sum(step.of_block[name] for name in ("weights", "adapter", "optimizer"))
    if step.left:
        held += (step.left - outside) / step.blocks
    # The first block needs no gradient of its input, so the second one may have the peak.
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
