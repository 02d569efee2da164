"""Prune a model without training, and print its size before and after: ``python 01_oneshot.py``."""

import argparse
from pathlib import Path

import loraprune
from loraprune import OneshotConfig
from loraprune.data.demo import demo_data, demo_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=demo_model(), help="folder or name on the Hub (default: the bundled model)")
parser.add_argument("--data", help="calibration text (default: Python's standard library)")
options = parser.parse_args()

data = options.data or demo_data(Path("demo-data"))[0]
config = OneshotConfig(ratio=0.5, calibration_sequences=40, max_length=128)  # leave the last two out for a real model
result = loraprune.oneshot(options.model, data, config)

dense, pruned = result.metrics["dense"], result.metrics["pruned"]
print(f"parameters  {dense['parameters']:,} -> {pruned['parameters']:,}")
print(f"megabytes   {dense['bytes'] / 1e6:.1f} -> {pruned['bytes'] / 1e6:.1f}")
