"""What a second process is worth: training, a one-shot run and an evaluation, in one process and in two.

    python benchmarks/processes.py

On a Llama of about 60 million parameters, one thread a process. The same sequences are in each step, the same
calibration data are looked at, and the same segments are measured. The ratio is the time of one process over that of
two; the variants take turns. Seconds of CPU are those that a process computes, without the time that it waits: other
work on the machine changes them less. Of two processes they are those of the busier one.
"""

from __future__ import annotations

import argparse
import json
import keyword
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback

import loraprune
from loraprune import EvaluationConfig, OneshotConfig, PruningConfig, RunOptions
from loraprune.data.demo import demo_model
from loraprune.processes.ranks import join, leave, num_processes

SEQUENCES, TOKENS = 8, 256
WORK = ("step", "oneshot", "eval")
CLOCKS = (time.perf_counter, time.process_time)


class _Seconds(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, ...]] = []

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.ends.append(_now())


def _now() -> tuple[float, ...]:
    """The time, and the CPU time of this process."""
    return tuple(clock() for clock in CLOCKS)


def _since(start: tuple[float, ...]) -> list[float]:
    return [now - then for now, then in zip(_now(), start, strict=True)]


def _prepare(folder: Path, rows: int) -> None:
    """A model with random weights, the bundled model's tokenizer, and rows of random words."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=12, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(1)
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(rows):
            text = " ".join(draw.choice(keyword.kwlist) for _ in range(TOKENS))
            file.write(json.dumps({"text": text}) + "\n")


def _work(folder: Path, steps: int, calibration: int, segments: int) -> None:
    """In each process: train, prune without training, evaluate, and write down the seconds."""
    torch.set_num_threads(1)
    join()
    model, rows = folder / "model", folder / "rows.jsonl"
    quiet = RunOptions(eval_sequences=0, latency=False, report=False)
    seconds = _Seconds()
    training = {
        "max_steps": steps,
        "per_device_train_batch_size": SEQUENCES // num_processes(),
        "max_length": TOKENS,
        "logging_steps": steps,
        "save_strategy": "no",
    }
    pruning = PruningConfig(ratio=0.5, prune_start=0.9, prune_end=1.0, cuts=1, repair="none")
    loraprune.prune(model, rows, pruning, training=training, options=quiet, callbacks=[seconds])
    config = OneshotConfig(ratio=0.5, allocation="uniform", calibration_sequences=calibration, max_length=TOKENS)
    started = _now()
    loraprune.oneshot(model, rows, config, options=quiet)
    one_shot = _since(started)
    text = EvaluationConfig(ppl=(str(rows),), max_length=TOKENS, batch_size=SEQUENCES, limit=segments)
    started = _now()
    (entry,) = loraprune.evaluate(model, text).entries
    evaluated = [entry.seconds, _since(started)[1]]  # CPU with loading
    ends = list(zip(*seconds.ends[1:-1], strict=True))
    step = [statistics.median(b - a for a, b in pairwise(clock)) for clock in ends]
    found = {"step": step, "oneshot": one_shot, "eval": evaluated}
    (folder / f"seconds.{os.environ['RANK']}.json").write_text(json.dumps(found))
    leave()


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="five or more: the first and the last are not timed")
    parser.add_argument("--calibration-sequences", type=int, default=32)
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.steps < 5:
        parser.error(f"--steps is {options.steps}; at least 5 are needed")
    if options.worker:
        _work(options.worker, options.steps, options.calibration_sequences, options.segments)
        return
    found: dict[int, dict[str, list[list[float]]]] = {count: {name: [] for name in WORK} for count in (1, 2)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _prepare(folder, SEQUENCES * (options.steps + options.calibration_sequences) + options.segments)
        for _ in range(options.rounds):
            for count, times in found.items():
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
                command = [*launch, __file__, "--worker", scratch, "--steps", str(options.steps)]
                further = ["--calibration-sequences", str(options.calibration_sequences)]
                further += ["--segments", str(options.segments)]
                subprocess.run([*command, *further], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                took = [json.loads((folder / f"seconds.{rank}.json").read_text()) for rank in range(count)]
                for name in WORK:
                    times[name].append([max(values) for values in zip(*(each[name] for each in took), strict=True)])
    for name in WORK:
        for number, unit in enumerate(("s", "s of CPU")):
            one, two = (statistics.median(took[number] for took in found[count][name]) for count in (1, 2))
            print(f"{name}: {one:.2f} {unit} in one process, {two:.2f} in each of two: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
