"""What benchmarks/gpu.py measures: training steps, forward passes, and memory by the number of layers."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

import torch
from gpu_model import Shape, random_model, with_lora

from loraprune.measure.benchmark.inference import forward_contender
from loraprune.measure.benchmark.timing import in_turns, wait_for
from loraprune.measure.benchmark.training_step import TrainingStep, Work, cut_at_random_, recompute_
from loraprune.pruning.config import PruningConfig

PAPER_ACCUMULATION = 128
STEPS_A_CUT = 10  # the paper prunes every 10 steps; scores that do not change with the data are read only then

RESOURCES: dict[str, tuple[int, dict[str, Any] | None]] = {
    "plain LoRA": (16, None),
    "magnitude": (16, {"criterion": "magnitude"}),
    "lora": (16, {"criterion": "lora"}),
    "fisher": (16, {"criterion": "fisher"}),
    "taylor (vanilla gradient)": (16, {"criterion": "taylor"}),
    "taylor, gradients off-loaded": (16, {"criterion": "taylor", "offload_grads": True}),
    "lora, 8-bit": (8, {"criterion": "lora"}),
    "fisher, 4-bit": (4, {"criterion": "fisher"}),
}
MEMORY: dict[str, tuple[int, dict[str, Any] | None]] = {
    "lora, 8-bit": (8, {"criterion": "lora"}),
    "fisher, 8-bit": (8, {"criterion": "fisher"}),
    "lora, 4-bit": (4, {"criterion": "lora"}),
    "fisher, 4-bit": (4, {"criterion": "fisher"}),
}
LATENCY = {"dense": 0.0, "20 %": 0.2, "50 %": 0.5}


def tuning(
    shape: Shape, criterion: dict[str, Any] | None, options: argparse.Namespace, accumulation: int
) -> TrainingStep:
    """Steps of a LoRA model at micro-batch 1, and perhaps a criterion that listens."""
    device = torch.device(options.device)
    model = with_lora(random_model(shape, device))
    if options.gradient_checkpointing:
        recompute_(model)
    config = None if criterion is None else PruningConfig(**criterion, repair="none", head_counts="any")
    ids = torch.randint(shape.vocabulary, (1, options.length), device=device)
    work = Work({"input_ids": ids, "labels": ids, "use_cache": False}, accumulation, torch.bfloat16)
    return TrainingStep(model, work, criterion=config)


def iteration(step: TrainingStep) -> tuple[float, float]:
    """Seconds of the forward and backward passes, and of what follows: scores and the optimizer's step."""
    wait_for(step.device)
    start = time.perf_counter()
    step.passes()
    wait_for(step.device)
    middle = time.perf_counter()
    step.update()
    wait_for(step.device)
    return middle - start, time.perf_counter() - middle


def reading(step: TrainingStep) -> float:
    """Seconds an iteration for scores that are read at each cut only; 0 for those of every step."""
    if not step.reads_at_cuts:
        return 0.0
    wait_for(step.device)
    start = time.perf_counter()
    step.read_scores()
    wait_for(step.device)
    return (time.perf_counter() - start) / STEPS_A_CUT


def peak_bytes(device: str) -> int | None:
    """Most bytes that were allocated at once since :func:`clean`; None where nothing counts them (on a CPU)."""
    return torch.cuda.max_memory_allocated() if torch.device(device).type == "cuda" else None


def clean(device: str) -> None:
    """Free what the last row left, and count anew."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def resources(shape: Shape, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tables 4 and 6 of the paper: an iteration's seconds, and the peak memory of the iterations."""
    bits, criterion = RESOURCES[variant]
    step = tuning(shape.with_(bits=bits), criterion, options, options.accumulation)
    clean(options.device)
    with step.turn():
        iteration(step)
        timed = [iteration(step) for _ in range(options.repeats)]
        passes, rest = (statistics.median(part) for part in zip(*timed, strict=True))
        rest += reading(step)
    return {
        "seconds": passes + rest,
        "seconds_of_the_paper": passes * PAPER_ACCUMULATION / options.accumulation + rest,
        "peak_bytes": peak_bytes(options.device),
    }


def memory(shape: Shape, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Table 1: peak memory by number of layers, and the line through it to all layers."""
    bits, criterion = MEMORY[variant]
    peaks: dict[int, int] = {}
    for layers in (2, 4):
        peaks[layers] = _peak_of(shape.with_(bits=bits, layers=layers), criterion, options)
    fixed, per_layer = line(peaks)
    budget = options.budget_gb * 1e9 if options.budget_gb else _free_bytes(options.device)
    most = min(shape.layers, int((budget - fixed) / per_layer)) if per_layer else 0
    if most > 4:
        try:
            peaks[most] = _peak_of(shape.with_(bits=bits, layers=most), criterion, options)
        except torch.cuda.OutOfMemoryError:
            clean(options.device)  # what was measured is enough for a line
    fixed, per_layer = line(peaks)
    measured = shape.layers in peaks
    total = fixed + per_layer * shape.layers
    return {
        "layers": sorted(peaks),
        "total_layers": shape.layers,
        "measured": measured,
        "peak_bytes": round(total) if total else None,
    }


def line(peaks: dict[int, int]) -> tuple[float, float]:
    """Bytes without layers and bytes a layer, from the smallest and the largest number of layers."""
    few, many = min(peaks), max(peaks)
    per_layer = (peaks[many] - peaks[few]) / (many - few)
    return peaks[few] - per_layer * few, per_layer


def _peak_of(shape: Shape, criterion: dict[str, Any] | None, options: argparse.Namespace) -> int:
    clean(options.device)
    step = tuning(shape, criterion, options, accumulation=1)
    clean(options.device)
    with step.turn():
        for _ in range(2):  # the optimizer has its state from the second one on
            step.step()
    return peak_bytes(options.device) or 0


def _free_bytes(device: str) -> float:
    return 0.9 * torch.cuda.mem_get_info()[0] if torch.device(device).type == "cuda" else 0.0


def latency(shape: Shape, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Table 3: a forward pass with the adapter beside the weights, and merged."""
    device = torch.device(options.device)
    model = with_lora(random_model(shape, device))
    if LATENCY[variant]:
        cut_at_random_(model, LATENCY[variant], allocation="uniform", head_counts="any")
    unmerged = _forward_seconds(model, options)
    return {"unmerged": unmerged, "merged": _forward_seconds(model.merge_and_unload(), options)}


def _forward_seconds(model: Any, options: argparse.Namespace) -> float:
    """Mean seconds, after two passes that are not timed."""
    device = torch.device(options.device)
    ids = torch.randint(model.config.vocab_size, (1, options.tokens), device=device)
    contender = forward_contender(model, lambda model, device: {"input_ids": ids, "use_cache": False})
    return in_turns({"only": contender}, repeats=options.forwards, warmup=2)["only"].mean
