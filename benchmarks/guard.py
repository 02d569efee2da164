"""Short measurements that must not get worse: ratios from one run, and seconds of CPU time at the start of commands.

    python benchmarks/guard.py -o guard.json                             # all of them
    python benchmarks/guard.py --against docs/results/guard.json         # exit status 1 if one is worse
    python benchmarks/guard.py --only oneshot --rounds 5 --hidden 1024   # one part, enlarged

Numerator and denominator take turns, and the ratio is the median over the turns. Times are CPU seconds with one thread,
which other work on the machine changes least. docs/performance.md explains each figure.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import torch
from guard_commands import first_step, start
from guard_models import evaluation, inference, oneshot
from guard_record import Figures, Guarded, line, read_figures, save_figures, worse
from guard_training import Part, run_with_cuts, step_of_run, step_with_scores

from loraprune.measure.benchmark.devices import circumstances

GUARDED = {
    "step-fisher": Guarded(what="training step with fisher / plain LoRA", target=1.01, tolerance=0.04),
    "step-lora": Guarded(what="training step with lora / plain LoRA", target=1.03, tolerance=0.04),
    "memory-fisher": Guarded(what="peak memory of a step with fisher / plain LoRA", target=1.005, tolerance=0.002),
    "memory-lora": Guarded(what="peak memory of a step with lora / plain LoRA", target=1.005, tolerance=0.002),
    "step-run": Guarded(what="step of a run before its cut / bare loop", target=1.05, tolerance=0.04),
    "step-run-trl": Guarded(what="step of a run / step of trl's SFTTrainer", target=1.05, tolerance=0.06),
    "run-cuts": Guarded(what="whole run with cuts / with masks", target=0.65, tolerance=0.08),
    "oneshot": Guarded(what="oneshot / two passes, moments, factorizations", target=1.3, tolerance=0.1),
    "forward": Guarded(what="forward pass of 2048 tokens, 50 % / dense", target=0.52, tolerance=0.05),
    "decoding": Guarded(what="decoding with a cache, 50 % / dense", target=0.58, tolerance=0.08),
    "eval": Guarded(what="perplexity / loop of transformers' loss", target=1.02, tolerance=0.03),
    "first-step": Guarded(what="start to first step, prune / SFTTrainer", target=1.2, tolerance=0.1),
    "option-error": Guarded(what="wrong option", target=0.5, tolerance=0.5, unit="s"),
    "first-line": Guarded(what="start to first line of prune", target=0.5, tolerance=0.5, unit="s"),
    "plan-7b": Guarded(what="plan of Llama-2-7B", target=4.0, tolerance=0.5, unit="s"),
}
"""Every figure."""

PARTS: dict[str, Part] = {
    "start": start,
    "first-step": first_step,
    "step": step_with_scores,
    "run-step": step_of_run,
    "run-cuts": run_with_cuts,
    "oneshot": oneshot,
    "inference": inference,
    "eval": evaluation,
}
"""Measurements, by the name for ``--only``."""


def measured(options: argparse.Namespace) -> Figures:
    """Run the parts in turn. Print and save each figure when it is known."""
    given = {name: value for name, value in vars(options).items() if name not in ("output", "against", "only")}
    facts = circumstances(torch.device("cpu"), "python benchmarks/guard.py") | {"options": given}
    found: Figures = {}
    for name in options.only or PARTS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            figures = PARTS[name](options, Path(scratch))
        for figure, value in figures.items():
            print(line(figure, GUARDED[figure], value), flush=True)
        print(f"  {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        found |= figures
        if options.output:
            save_figures(options.output, found, GUARDED, facts)
    return found


def main() -> None:
    """Measure, print, save and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of short calls")
    parser.add_argument("--rounds", type=int, default=2, help="timed turns of whole runs")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=16, help="rows of 512 tokens to calibrate and evaluate on")
    parser.add_argument("--steps", type=int, default=20, help="steps of a whole run")
    parser.add_argument("-o", "--output", type=Path, help="file for the figures (JSON)")
    parser.add_argument("--against", type=Path, help="file of an earlier run; exit status 1 if a figure is worse")
    options = parser.parse_args()
    try:
        before = read_figures(options.against) if options.against else {}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    found = measured(options)
    lines = list(worse(found, before, GUARDED))
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
