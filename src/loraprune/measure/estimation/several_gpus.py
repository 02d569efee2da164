"""A run on several GPUs: memory and traffic of each GPU, and seconds per step."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.cluster import ClusterConfig
from loraprune.measure.estimation.gpus import GIB, Gpu, step_seconds
from loraprune.measure.estimation.links import Ring
from loraprune.measure.estimation.run_size import RunSize, TrainedModel

GATHERED_BLOCKS = 2
"""Number of blocks gathered at the same time under fsdp2: one is computed while the next one arrives."""

COMMUNICATOR = 1.0
"""GiB used by the buffers of NCCL. An assumption."""

BUCKET = 25 * 1024**2
"""Bytes of gradients that DDP sends in one bucket."""

MOST_GPUS = 4096
"""Limit of the search for the number of GPUs at which communication takes longer than computation."""


@dataclass(frozen=True, kw_only=True)
class ClusterMemory:
    """Bytes on each GPU at the peak of a step; see :class:`loraprune.measure.estimation.result.StepMemory`.

    Attributes:
        base: frozen weights on a GPU: all of them, or its shard.
        gathered: weights that are gathered temporarily: those outside the blocks, and two blocks.
        adapter: trained parameters, their gradients and the optimizer's states, complete on each GPU.
        averaging: copy used to average gradients.
        activations: tensors of the GPU's own micro-batch.
        temporary: short-lived tensors.
        criterion: state of the criterion.
        teacher: the dense model for distillation, with logits.
        step: sum of all these.
        cut: peak of a cut with refit, on this GPU's part of the calibration data; 0 without refit.
    """

    base: float
    gathered: float
    adapter: float
    averaging: float
    activations: float
    temporary: float
    criterion: float
    teacher: float
    step: float
    cut: float

    @property
    def peak(self) -> float:
        """Peak bytes of the whole run."""
        return max(self.step, self.cut)


@dataclass(frozen=True, kw_only=True)
class StepTraffic:
    """Bytes that each GPU sends in a step; it receives as many.

    Attributes:
        base: frozen weights that are gathered, for the forward and the backward pass of each micro-batch.
        gradients: gradients of the adapter, once per step.
        evidence: evidence of the criterion, once per step.
    """

    base: float
    gradients: float
    evidence: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.base + self.gradients + self.evidence


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        computing: without any communication.
        communication: without any computation.
        step: both: gathers overlap with computation, and sums follow it.
    """

    computing: float
    communication: float
    step: float


def memory_of(size: RunSize, strategy: str, processes: int) -> ClusterMemory:
    """Return the bytes on each of several GPUs."""
    one, base = size.memory, size.before.base
    parts = {"base": one.weights, "gathered": 0.0, "averaging": size.before.gradients if processes > 1 else 0.0}
    cutting = one.weights
    if strategy == "fsdp2":
        parts["base"] = one.weights - base.nbytes + base.shard(processes)
        block = base.largest_block(processes)
        parts["gathered"] = base.outside.gathered(processes) + min(GATHERED_BLOCKS, len(base.blocks)) * block
        # A cut processes one block after the other.
        cutting = parts["base"] + base.outside.gathered(processes) + block
    step = one.step - one.weights + sum(parts.values())
    return ClusterMemory(
        **parts,
        adapter=one.adapter,
        activations=one.activations,
        temporary=one.temporary,
        criterion=one.criterion,
        teacher=one.teacher,
        step=step,
        cut=one.cut - one.weights + cutting + parts["averaging"] if one.cut else 0.0,
    )


def traffic_of(
    model: TrainedModel, strategy: str, ring: Ring, *, micro_batches: int = 1, evidence: float = 0.0
) -> StepTraffic:
    """Return the bytes that each GPU sends in a step."""
    gathered = 0.0
    if strategy == "fsdp2":
        processes = ring.processes
        blocks = sum(block.gathered(processes) for block in model.base.blocks)
        gathered = micro_batches * (2 * blocks + model.base.outside.gathered(processes))
    return StepTraffic(
        base=ring.sent(gathered), gradients=2 * ring.sent(model.gradients), evidence=2 * ring.sent(evidence)
    )


def time_of(
    model: TrainedModel, strategy: str, gpu: Gpu, ring: Ring, *, micro_batches: int = 1, evidence: float = 0.0
) -> StepTime:
    """Return the seconds of a step.

    Blocks are gathered while the previous block is computed, in each pass of each micro-batch. The first gather of a
    pass overlaps with nothing. Gradients and evidence are summed after all computation. This is the worst case, because
    DDP starts earlier.
    """
    computing = step_seconds(model.flops * micro_batches, gpu, dequantized=model.dequantized)
    step, gathering = computing, 0.0
    if strategy == "fsdp2" and ring.processes > 1:
        base, processes = model.base, ring.processes
        blocks = [ring.gather_seconds(block.gathered(processes)) for block in base.blocks]
        outside = ring.gather_seconds(base.outside.gathered(processes))
        forward = computing / micro_batches * min(model.forward_flops / model.flops, 1.0)
        backward = computing / micro_batches - forward
        passes = max(forward, sum(blocks[1:])) + max(backward, sum(blocks[:-1]))
        step = micro_batches * (outside + blocks[0] + blocks[-1] + passes)
        gathering = micro_batches * (outside + 2 * sum(blocks))
    sums = ring.sum_seconds(model.gradients, -(-model.gradients // BUCKET))
    sums += ring.sum_seconds(evidence) if evidence else 0.0
    return StepTime(computing=computing, communication=gathering + sums, step=step + sums)


def usable_beside_others(gpu: Gpu, processes: int) -> float:
    """Bytes available to tensors on each of several GPUs."""
    return gpu.usable - (COMMUNICATOR * GIB if processes > 1 else 0.0)


@dataclass(frozen=True, kw_only=True)
class ClusterFit:
    """A run on several GPUs of one kind.

    Attributes:
        gpu: name of the GPUs.
        dtype: dtype of the weights that are not quantized, on these GPUs.
        strategy: ``ddp`` or ``fsdp2``.
        reason: reason for this strategy.
        usable: bytes available to tensors on each GPU.
        memory: bytes on each GPU.
        traffic: bytes that each GPU sends in a step before the cuts.
        time: seconds of a step before the cuts.
        time_after: the same after them.
        tokens_a_second: tokens per second of all GPUs together, before the cuts.
        tokens_after: the same after them.
        outgrown_at: number of GPUs, with the same number per node, from which communication takes longer than
            computation if each GPU keeps its micro-batches; None if it is above :data:`MOST_GPUS`.
        least_tokens: tokens of a micro-batch below which communication takes longer than computation on these GPUs.
    """

    gpu: str
    dtype: str
    strategy: str
    reason: str
    usable: float
    memory: ClusterMemory
    traffic: StepTraffic
    time: StepTime
    time_after: StepTime
    tokens_a_second: float
    tokens_after: float
    outgrown_at: int | None
    least_tokens: float

    @property
    def fits(self) -> bool:
        """Whether the run fits."""
        return self.memory.peak <= self.usable


def chosen_strategy(
    size: RunSize, gpu: Gpu, processes: int, asked: str | None, quantization: str | None
) -> tuple[str, str]:
    """Strategy on GPUs of one kind, and the reason: the requested one, or one that fits."""
    holds = memory_of(size, "ddp", processes).peak <= usable_beside_others(gpu, processes)
    one = f"one GPU {'holds' if holds else 'does not hold'} the whole run"
    if processes == 1:
        return "ddp", one
    if asked is not None:
        return asked, f"requested; {one}"
    if holds or quantization is None:
        return "ddp" if holds else "fsdp2", one
    return "ddp", f"{one}, and a quantized base cannot be sharded"


def on_cluster(size: RunSize, gpu: Gpu, cluster: ClusterConfig, quantization: str | None = None) -> ClusterFit:
    """Estimate a run on several GPUs of one kind.

    Args:
        size: size of the run for one process.
        gpu: kind of GPU.
        cluster: number of GPUs and their connections.
        quantization: quantization of the base.
    """
    strategy, reason = chosen_strategy(size, gpu, cluster.processes, cluster.strategy, quantization)
    ring = cluster.ring(gpu.link)
    step = {"micro_batches": size.micro_batches, "evidence": size.evidence}
    time = time_of(size.before, strategy, gpu, ring, **step)
    after = time_of(size.after, strategy, gpu, ring, micro_batches=size.micro_batches)
    tokens = size.tokens * size.micro_batches * cluster.processes
    return ClusterFit(
        gpu=gpu.name,
        dtype=size.dtype,
        strategy=strategy,
        reason=reason,
        usable=usable_beside_others(gpu, cluster.processes),
        memory=memory_of(size, strategy, cluster.processes),
        traffic=traffic_of(size.before, strategy, ring, **step),
        time=time,
        time_after=after,
        tokens_a_second=tokens / time.step,
        tokens_after=tokens / after.step,
        outgrown_at=_outgrown_at(size, strategy, gpu, cluster),
        least_tokens=size.tokens * time.communication / time.computing,
    )


def _outgrown_at(size: RunSize, strategy: str, gpu: Gpu, cluster: ClusterConfig) -> int | None:
    """Number of GPUs at which communication first takes longer than computation; beyond one node, whole nodes."""

    def outgrown(gpus: int, nodes: int) -> bool:
        ring = cluster.ring(gpu.link, gpus, nodes)
        time = time_of(size.before, strategy, gpu, ring, micro_batches=size.micro_batches, evidence=size.evidence)
        return time.communication > time.computing

    for gpus in range(2, cluster.gpus + 1):
        if outgrown(gpus, 1):
            return gpus
    low, high = 1, max(MOST_GPUS // cluster.gpus, 2)
    if not outgrown(cluster.gpus, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if outgrown(cluster.gpus, middle) else (middle, high)
    return high * cluster.gpus
