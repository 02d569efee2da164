"""What the paper's tables of resources are on your GPU: seconds, memory and latency of a Llama with random weights.

    python benchmarks/gpu.py                      # all three tables
    python benchmarks/gpu.py resources --only lora fisher
    python benchmarks/gpu.py smoke                # does everything run here at all?
    python benchmarks/gpu.py processes            # and with a process on each GPU?

``resources`` (LoRAPrune's Tables 4 and 6): seconds an iteration at micro-batch 1, and peak memory, before any cut.
``latency`` (Table 3): a forward pass, adapter merged and not, dense and cut at random with uniform widths.
``memory`` (Table 1): peak memory of a quantized LLaMA-65B: as many layers as fit, and a line to all of them.
``smoke``: two steps of a tiny model with every criterion on every base; a line for each.
``processes``: short runs under torchrun (DDP, FSDP2, one-shot) against the same in one process; a line for each.

Finished rows are read back from ``--out``, so that an interrupted run goes on; what failed is tried again. A row that
cannot run says why, and the others go on. ``--device cpu --preset tiny`` shows the tables in miniature.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_rows
import torch
from gpu_model import PRESETS, Shape
from gpu_processes import try_processes
from gpu_smoke import smoke

PARTS: dict[str, tuple[str, tuple[str, ...], Callable[[Shape, str, argparse.Namespace], dict[str, Any]]]] = {
    "resources": ("llama-7b", tuple(gpu_rows.RESOURCES), gpu_rows.resources),
    "latency": ("llama-7b", tuple(gpu_rows.LATENCY), gpu_rows.latency),
    "memory": ("llama-65b", tuple(gpu_rows.MEMORY), gpu_rows.memory),
}
SETTINGS = {
    "resources": ("length", "accumulation", "gradient_checkpointing"),
    "latency": ("tokens",),
    "memory": ("length", "gradient_checkpointing"),
}
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"


def header(options: argparse.Namespace) -> str:
    """Everything that is needed to repeat the run."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    return f"{device_name(options.device)}; {libraries}; {time.strftime('%Y-%m-%d')}; `{command}`"


def measured(part: str, variant: str, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """A row; one that cannot run holds the reason."""
    gpu_rows.clean(options.device)
    try:
        return PARTS[part][2](shape, variant, options)
    except torch.cuda.OutOfMemoryError:
        return {"error": f"out of memory ({torch.cuda.mem_get_info()[1] / 1e9:.0f} GB on this device)"}
    except (ImportError, ValueError) as error:
        return {"error": str(error).partition("\n")[0]}
    except Exception as error:  # whatever it is, the other rows are worth having
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}


def gigabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e9:.3g} GB"


def resources_table(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[str]:
    paper = gpu_rows.PAPER_ACCUMULATION
    factor = paper / options.accumulation
    how = "" if factor == 1 else f" (extrapolated, ×{factor:g})"
    lines = [
        f"| | s/iteration, 1 × {options.accumulation} | s/iteration, 1 × {paper}{how} | peak memory | "
        f"hours of {options.iterations} iterations |",
        "|---|---|---|---|---|",
    ]
    for variant, row in rows.items():
        if "error" in row:
            lines.append(f"| {variant} | not run: {row['error']} | | | |")
            continue
        hours = row["seconds_of_the_paper"] * options.iterations / 3600
        lines.append(
            f"| {variant} | {row['seconds']:.3f} | {row['seconds_of_the_paper']:.2f} | "
            f"{gigabytes(row['peak_bytes'])} | {hours:.2f} |"
        )
    return lines


def latency_table(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[str]:
    lines = [f"| {options.tokens}-token forward | unmerged | merged |", "|---|---|---|"]
    dense = rows.get("dense", {})
    for variant, row in rows.items():
        if "error" in row:
            lines.append(f"| {variant} | not run: {row['error']} | |")
            continue
        cells = []
        for how in ("unmerged", "merged"):
            share = f" ({row[how] / dense[how]:.2f}×)" if how in dense else ""
            cells.append(f"{row[how]:.4f} s{share}")
        lines.append(f"| {variant} | {cells[0]} | {cells[1]} |")
    return lines


def memory_table(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[str]:
    lines = ["| | peak memory | from |", "|---|---|---|"]
    for variant, row in rows.items():
        if "error" in row:
            lines.append(f"| {variant} | not run: {row['error']} | |")
            continue
        if row["peak_bytes"] is None:
            how = "nothing counts memory on this device"
        elif row["measured"]:
            how = f"measured, {row['total_layers']} layers"
        else:
            how = f"extrapolated to {row['total_layers']} layers from {' and '.join(map(str, ends(row['layers'])))}"
        lines.append(f"| {variant} | {gigabytes(row['peak_bytes'])} | {how} |")
    return lines


def ends(layers: list[int]) -> list[int]:
    """The two numbers of layers that the line goes through."""
    return [layers[0], layers[-1]]


TABLES = {"resources": resources_table, "latency": latency_table, "memory": memory_table}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part", nargs="?", choices=(*PARTS, "smoke", "processes"), help="one table; all of them by default"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="LLaMA-7B; for memory LLaMA-65B")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset has")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="of the part with that name (one for each GPU)")
    parser.add_argument("--only", nargs="+", help="rows (in smoke: criteria) whose names begin so")
    parser.add_argument("--out", type=Path, default=Path("build/gpu.jsonl"))
    parser.add_argument("--length", type=int, default=512, help="tokens of a training sequence")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches an iteration; the paper has 128")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=5, help="timed iterations")
    parser.add_argument("--iterations", type=int, default=500, help="of a whole run: the paper's hours by its seconds")
    parser.add_argument("--tokens", type=int, default=2048, help="of a timed forward pass")
    parser.add_argument("--forwards", type=int, default=100, help="timed forward passes")
    parser.add_argument("--budget-gb", type=float, help="memory for the layers of LLaMA-65B (nine tenths of the free)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    for library in ("transformers", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    print(header(options), flush=True)
    if options.part == "smoke":
        raise SystemExit(smoke(options.device, options.only))
    if options.part == "processes":
        count = options.processes or (torch.cuda.device_count() if options.device == "cuda" else 2)
        if count < 2:
            raise SystemExit(f"Several processes need a GPU each, and there is {count}. Try it with --device cpu.")
        raise SystemExit(try_processes(options.device, count))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    found = False
    for part in [options.part] if options.part else PARTS:
        preset, variants, _ = PARTS[part]
        preset = options.preset or preset
        shape = PRESETS[preset] if options.layers is None else PRESETS[preset].with_(layers=options.layers)
        rows = {}
        for variant in variants:
            if options.only and not variant.startswith(tuple(options.only)):
                continue
            key = {"device": device_name(options.device), "versions": versions(), "part": part, "variant": variant}
            key |= {"preset": preset, "shape_layers": shape.layers}
            key |= {name: getattr(options, name) for name in SETTINGS[part]}
            row = next((row for row in done if row.items() >= key.items() and "error" not in row), None)
            if row is None:
                row = key | measured(part, variant, shape, options)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            rows[variant] = row
        if rows:
            found = True
            settings = ", ".join(f"{name.replace('_', ' ')} {getattr(options, name)}" for name in SETTINGS[part])
            print(f"\n{part}: {preset}, {shape.layers} layers, random weights, bf16 and sdpa; {settings}\n")
            print("\n".join(TABLES[part](rows, options)), flush=True)
    if not found:
        raise SystemExit("No row has a name that begins so.")


if __name__ == "__main__":
    main()
