"""``loraprune plan``: what pruning a model will give and take, before any weight is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.numbers import indices, names, parameter_count
from loraprune.measure.estimation.gpus import PRESETS

PRUNING = ("criterion", "taylor_form", "lora_form", "group_reduction", "offload_grads", "allocation", "dimensions",
           "keep_layers", "refit", "calibration_sequences", "channel_multiple", "cuts")  # fmt: skip
"""Options that go to the pruning configuration under their own names."""

RUN = ("target_params", "max_length", "gradient_accumulation_steps", "gradient_checkpointing", "dtype", "bf16",
       "device", "batch_size")  # fmt: skip
"""The same for the run."""


def parser() -> argparse.ArgumentParser:
    """The options of the command; those of ``loraprune prune`` have the same names and mean the same."""
    parser = argparse.ArgumentParser(
        prog="loraprune plan",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Say what loraprune prune will take and give, from a model's config alone: shapes, parameters, "
        "memory,\ntime, and which GPUs it fits. No weights are loaded; every figure is an estimate (docs/planning.md).",
        epilog="presets, shapes of well-known models that need no hub (a folder of the same name wins):\n"
        + _wrapped(PRESETS),
    )
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
    add = parser.add_argument
    add("model", help="a checkpoint's folder or its hub name, a config.json, or a preset")
    what = parser.add_argument_group("pruning")
    what.add_argument("--ratio", type=float, nargs="+", help="share of the prunable parameters that goes; several are "
                      "compared (0.5)")  # fmt: skip
    what.add_argument("--target-params", type=parameter_count, help="instead of a ratio: parameters of the result, "
                      "such as 4.5B")  # fmt: skip
    what.add_argument("--criterion", help="fisher, lora, taylor, magnitude, wanda, flap, random or position (fisher)")
    what.add_argument("--taylor-form", help="of the criterion taylor (squared)")
    what.add_argument("--lora-form", help="of the criterion lora (squared)")
    what.add_argument("--group-reduction", help="of taylor, lora and magnitude (sum)")
    what.add_argument(
        "--offload-grads", help="taylor: gradients that wait do so in the machine's memory (off)", **switch
    )
    what.add_argument("--allocation", help="balanced, uniform or global (balanced)")
    what.add_argument("--dimensions", type=names, help="kinds of dimensions to prune, such as query_heads,channels")
    what.add_argument("--keep-layers", type=indices, help="layers that keep everything, such as 0-3,-1")
    what.add_argument("--refit", help="repair layers by least squares after a cut (on)", **switch)
    what.add_argument("--calibration-sequences", type=int, help="training sequences that the refit looks at (128)")
    what.add_argument("--channel-multiple", type=int, help="round FFN widths to a multiple (by size)")
    what.add_argument("--cuts", type=int, help="number of cuts (5)")
    run = parser.add_argument_group("training")
    run.add_argument("--per-device-train-batch-size", "--batch-size", dest="batch_size", type=int, help="rows in a "
                     "micro-batch (8)")  # fmt: skip
    run.add_argument("--gradient-accumulation-steps", type=int, help="micro-batches in a step (1)")
    run.add_argument("--max-length", type=int, help="tokens of a row (1024, or the model's context)")
    run.add_argument("--gradient-checkpointing", help="compute activations again in the backward pass (on)", **switch)
    run.add_argument("--bf16", help="matrix products in bfloat16 (on)", **switch)
    run.add_argument("--dtype", help="that the checkpoint is stored in: bfloat16, float16 or float32 (its config's)")
    run.add_argument("--lora-r", type=int, help="rank of LoRA (8)")
    run.add_argument("--lora-target-modules", nargs="+", help="layers to adapt (all projections of the blocks)")
    run.add_argument("--load-in-8bit", action="store_true", help="quantize the base by LLM.int8 of bitsandbytes (off)")
    run.add_argument("--load-in-4bit", action="store_true", help="quantize the base to NF4 (off)")
    run.add_argument("--quantization", help="bnb-8bit or bnb-4bit, which the two switches stand for, or torchao-int8")
    run.add_argument("--device", help="cuda, or cpu to compare the estimate with a measurement on a CPU (cuda)")
    out = parser.add_argument_group("input and output")
    out.add_argument("--json", action="store_true", help="the same as JSON, in bytes, operations and seconds")
    out.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the JSON to a file, too")
    out.add_argument("--architecture", type=Path, metavar="FILE.yaml", help="description of the model's family")
    out.add_argument("--revision", default=None, help="branch, tag or commit of a hub checkpoint")
    out.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings (off)")
    return parser


def _wrapped(items: Any) -> str:
    import textwrap

    return textwrap.fill(", ".join(items), 96, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    console = open_console()
    return report_errors(console, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.ratio and options.target_params is not None:
        raise ValueError("--ratio and --target-params say the same thing; give one of them.")
    if options.output is not None and not options.output.parent.is_dir():
        raise ValueError(f"The folder of {options.output} does not exist. Make it, or name another file.")
    from loraprune.architectures import read_spec, register
    from loraprune.cli.plan_table import show
    from loraprune.measure.estimation.estimate import Estimator
    from loraprune.measure.estimation.shape_models import find_config
    from loraprune.record.atomic import write_text

    quiet_libraries()
    if options.architecture is not None:
        register(read_spec(options.architecture))
    settings = _settings(options)
    config = find_config(options.model, trust_remote_code=options.trust_remote_code, revision=options.revision)
    estimator = Estimator(options.model, config, settings)
    estimates = [estimator.estimate(ratio) for ratio in options.ratio or [None]]
    text = json.dumps([found.to_json() for found in estimates], indent=2)
    if options.output is not None:
        write_text(options.output, text + "\n")
    if options.json:
        print(text)
    else:
        show(results_console(), estimates)
    return 0


def _settings(options: argparse.Namespace) -> Any:
    """The run that was asked about."""
    from loraprune.cli.prune import settle_quantization
    from loraprune.measure.estimation.config import EstimateConfig
    from loraprune.pruning.config import PruningConfig
    from loraprune.tasks.lora import LoraOptions

    given = {name: value for name, value in vars(options).items() if value is not None and value is not False}
    given |= {name: False for name in (*PRUNING, *RUN) if getattr(options, name, None) is False}
    settle_quantization(given, dict(given))
    ratios = options.ratio or ()
    for ratio in ratios:
        if not 0.0 < ratio < 1.0:
            raise ValueError(
                f"--ratio is {ratio:g}; it must lie between 0 and 1: the share of prunable weights that goes."
            )
    pruning = {name: given[name] for name in PRUNING if name in given}
    lora = {"r": given.get("lora_r"), "target_modules": given.get("lora_target_modules")}
    return EstimateConfig(
        pruning=PruningConfig(**pruning),
        lora=LoraOptions(**{name: value for name, value in lora.items() if value is not None}),
        quantization=given.get("quantization"),
        **{name: given[name] for name in RUN if name in given},
    )
