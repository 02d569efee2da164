"""What pruning costs and saves: a training step and a forward pass, as ratios from one run.

    python benchmarks/step.py

Times a step of plain LoRA tuning, with the gates of ``fisher`` and with ``lora``'s scores, in turns on one model;
then cuts the model to half and times plain LoRA on dense and pruned in turns; then the forward pass of both with the
adapter merged. Peak memory is that of all live tensors during one step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune.evaluation.latency import forward_latency
from loraprune.export import finish
from loraprune.training.callback import gradients_finite
from loraprune.training.config import PruningConfig
from loraprune.training.run import PruningRun

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAR = 10**6  # steps: no cut falls due while a criterion is timed


class Timed:
    """A LoRA model with its optimizer, and perhaps a criterion that listens."""

    def __init__(self, model: nn.Module, options: argparse.Namespace, criterion: str | None = None) -> None:
        self.model = model.train()
        self.options = options
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        self.criterion = criterion
        self.run: PruningRun | None = None

    def step(self, batch: torch.Tensor) -> None:
        """Forward, backward, scores, update."""
        device = batch.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.options.bf16):
            loss = self.model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        if self.run is not None:
            self.run.observe(usable=gradients_finite(self.model))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __enter__(self) -> Timed:
        if self.criterion is not None:
            self.run = PruningRun.of(self.model, PruningConfig(criterion=self.criterion, refit=False))
            self.run.begin(self.model, FAR)
        return self

    def __exit__(self, *error: object) -> None:
        if self.run is not None:
            self.run.end()
            self.run = None


def build(options: argparse.Namespace) -> nn.Module:
    """A Llama of about 50 million parameters, nearly all of them in its blocks, with LoRA."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(options.device)
    if options.bf16:
        model = model.to(torch.bfloat16)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))


def in_turns(variants: dict[str, Timed], batch: torch.Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step, variants taking turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 2):
        for name, timed in variants.items():
            with timed:
                _synchronize(batch.device)
                start = time.perf_counter()
                timed.step(batch)
                _synchronize(batch.device)
                if turn >= 2:
                    times[name].append(time.perf_counter() - start)
    return times


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(timed: Timed, batch: torch.Tensor) -> int:
    """Bytes of all live tensors at the worst moment of one step."""
    with timed:
        if batch.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            timed.step(batch)
            return torch.cuda.max_memory_allocated()
        with LiveBytes() as live:
            timed.step(batch)
        return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and not yet freed while it is on (CPU has no such counter)."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[int, Any]] = {}
        self.now = self.peak = 0

    def _forget(self, key: int) -> None:
        self.now -= self._live.pop(key)[0]

    def _count(self, value: object) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            key = storage._cdata
            if key not in self._live:
                gone = weakref.ref(storage, lambda _, key=key: self._forget(key))
                self._live[key] = (storage.nbytes(), gone)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map(self._count, (args, kwargs, result))
        return result


def cut_in_half(model: nn.Module, batch: torch.Tensor) -> PruningRun:
    """Cut half of every dimension, as the first step of a run would."""
    run = PruningRun.of(model, PruningConfig(allocation="uniform", refit=False, cuts=1))
    run.begin(model, 1)
    model(input_ids=batch, labels=batch).loss.backward()
    run.observe()
    run.cut_if_due(1)
    run.end()
    return run


def ratio_line(label: str, times: dict[str, list[float]], base: str, name: str) -> str:
    """``label: 1.02x (0.512 s against 0.502 s)``, from medians."""
    a, b = statistics.median(times[name]), statistics.median(times[base])
    pairs = statistics.median(x / y for x, y in zip(times[name], times[base], strict=True))
    return f"{label:58} {a / b:6.3f}x  (median of pairs {pairs:.3f}x; {a:.3f} s against {b:.3f} s)"


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="bf16 weights and autocast")
    options = parser.parse_args()
    model = build(options)
    batch = torch.randint(1024, (options.batch_size, options.length), device=options.device)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{model.get_base_model().num_parameters():,} parameters, {options.batch_size}x{options.length} tokens, "
        f"{name}, {torch.get_num_threads()} threads, {'bf16' if options.bf16 else 'fp32'}",
        flush=True,
    )

    variants: dict[str, Timed] = {c or "plain": Timed(model, options, c) for c in (None, "fisher", "lora")}
    times = in_turns(variants, batch, options.repeats)
    memory = {label: peak_memory(timed, batch) for label, timed in variants.items()}
    for label in ("fisher", "lora"):
        print(ratio_line(f"step with {label} / plain LoRA", times, "plain", label))
        share = memory[label] / memory["plain"]
        megabytes = f"{memory[label] / 1e6:.1f} MB against {memory['plain'] / 1e6:.1f} MB"
        print(f"{'   peak memory':58} {share:6.3f}x  ({megabytes})")

    pruned = copy.deepcopy(model)
    run = cut_in_half(pruned, batch)
    after = {"dense": Timed(model, options), "pruned": Timed(pruned, options)}
    steps = in_turns(after, batch, options.repeats)
    print(ratio_line("plain LoRA step, cut to 50 % / dense", steps, "dense", "pruned"))

    merged = {"dense": model.merge_and_unload(), "pruned": finish(pruned, run.structure, run.plan)}
    forward: Callable[..., dict[str, float]] = forward_latency
    seconds = forward(merged, batch_size=options.batch_size, tokens=options.length, repeats=options.repeats)
    share = seconds["pruned"] / seconds["dense"]
    print(
        f"{'forward pass, merged, cut to 50 % / dense':58} {share:6.3f}x  "
        f"({seconds['pruned']:.3f} s against {seconds['dense']:.3f} s)"
    )


if __name__ == "__main__":
    main()
