"""Prune a model while LoRA tunes it, and write an ordinary checkpoint: ``python 02_prune_while_tuning.py``."""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM

import loraprune
from loraprune import PruningConfig, RunOptions
from loraprune.data.demo import demo_data, demo_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=demo_model(), help="folder or name on the Hub (default: the bundled model)")
parser.add_argument("--data", help="text to tune on (default: Python's standard library)")
parser.add_argument("--ratio", type=float, default=0.5, help="ratio of the prunable parameters to remove")
parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
parser.add_argument("-o", "--output", type=Path, default=Path("pruned"), help="folder of the result")
options = parser.parse_args()

result = loraprune.prune(
    options.model,
    options.data or demo_data(Path("demo-data"))[0],
    PruningConfig(ratio=options.ratio, cuts=4, calibration_sequences=40),
    training={
        "max_steps": options.steps,
        "per_device_train_batch_size": 8,
        "max_length": 128,
        "learning_rate": 2e-3,  # for a toy; leave it out for a real model
    },
    options=RunOptions(output=options.output, overwrite=True, eval_sequences=16, latency=False),
    verbosity="progress",  # what the command line shows
)

removed = result.plan.ratio(result.structure)
dense, pruned = result.metrics["dense"], result.metrics["pruned"]
print(f"removed     {removed:.1%} of the prunable parameters")
print(f"parameters  {dense['parameters']:,} -> {pruned['parameters']:,}")
print(f"perplexity  {dense['perplexity']:.2f} -> {pruned['perplexity']:.2f}")

model = AutoModelForCausalLM.from_pretrained(options.output)  # without loraprune
print(f"{options.output} holds a {type(model).__name__}. Open {options.output / 'report.html'} in a browser.")
