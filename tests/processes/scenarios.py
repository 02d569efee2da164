"""Runs that tests make in one process and in several, and what is compared of them.

As a script: run scenarios by their names in the process that a launcher started, and write down what came of them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tests.processes.measured import MEASURED, failing

import loraprune
from loraprune import OneshotConfig, PruningCallback, PruningConfig, RunOptions
from loraprune.processes.ranks import OtherProcessError, is_main, join, leave, num_processes
from loraprune.tasks.options import LoraOptions

EARLY: dict[str, Any] = {"cuts": 2, "prune_start": 0.2, "prune_end": 0.5, "ratio": 0.5, "repair": "none"}
FIRST: dict[str, Any] = {"prune_start": 0.0, "cuts": 1, "ratio": 0.5, "calibration_sequences": 16}

SCENARIOS: dict[str, dict[str, Any]] = {
    **{name: {"pruning": {**EARLY, "criterion": name}} for name in ("fisher", "lora", "magnitude", "wanda", "flap")},
    **{
        f"taylor {form}": {"pruning": {**EARLY, "criterion": "taylor", "taylor_form": form}}
        for form in ("squared", "first", "second", "mix", "vectorize")
    },
    "refit": {"pruning": {**EARLY, "repair": "refit"}},
    "stream": {"pruning": {**EARLY, "repair": "stream"}},
    "blocks": {"pruning": {**EARLY, "dimensions": ("blocks",)}},
    "hidden": {"pruning": {**EARLY, "dimensions": ("hidden",)}},
    "masks": {"pruning": {**EARLY, "apply": "mask"}},
    "osscar first": {"pruning": {**FIRST, "criterion": "osscar", "repair": "stream"}},
    "distill": {"pruning": {**EARLY}, "options": {"distill": 0.5}},
    "evaluated": {
        "pruning": {**EARLY},
        "options": {"eval_steps": 2, "early_stopping_patience": 4, "load_best": True},
    },
    "pst": {"pruning": {"criterion": "pst", "ratio": 0.5}},
    "recover": {},
    "oneshot": {"oneshot": {"ratio": 0.4}},
    "oneshot uniform": {"oneshot": {"ratio": 0.4, "allocation": "uniform"}},
    "oneshot readers": {"oneshot": {"ratio": 0.4, "repair": "stream+readers"}},
    "oneshot flap": {"oneshot": {"ratio": 0.4, "criterion": "flap", "repair": "bias", "allocation": "global"}},
    "oneshot fisher": {"oneshot": {"ratio": 0.4, "criterion": "fisher", "repair": "refit", "allocation": "balanced"}},
    **{
        f"oneshot taylor {form}": {
            "oneshot": {"ratio": 0.4, "criterion": "taylor", "taylor_form": form, "repair": "none"},
        }
        for form in ("squared", "first", "second", "mix", "vectorize")
    },
    "oneshot blocks": {"oneshot": {"ratio": 0.4, "dimensions": ("blocks",)}},
    "oneshot wanda": {"oneshot": {"sparsity": "2:4", "criterion": "wanda"}},
    "oneshot sparsegpt": {"oneshot": {"sparsity": 0.5}},
    "oneshot of one row": {"oneshot": {"ratio": 0.4, "calibration_sequences": 1, "allocation": "uniform"}},
    "oneshot fisher of one row": {"oneshot": {"ratio": 0.4, "criterion": "fisher", "calibration_sequences": 1}},
    **{
        f"oneshot of experts, {name}": {"of": "mixture", "oneshot": {**{"allocation": "uniform"}, **values}}
        for name, values in {
            "osscar": {"ratio": 0.4, "repair": "refit"},
            "few tokens": {"ratio": 0.4, "repair": "stream", "calibration_sequences": 2, "max_length": 4},
            "whole": {"ratio": 0.25, "dimensions": ("experts",)},
            "fisher": {"ratio": 0.4, "criterion": "fisher", "repair": "refit"},
            "taylor": {"ratio": 0.4, "criterion": "taylor", "repair": "none"},
        }.items()
    },
    "oneshot of experts, sparsegpt": {"of": "mixture", "oneshot": {"sparsity": 0.5}},
    "own trainer": {"own": EARLY},
    "own trainer, cut first": {"own": {**FIRST, "criterion": "osscar", "repair": "stream"}},
    "checkpointing": {"pruning": {**EARLY}, "training": {"gradient_checkpointing": True}},
}
SHARED = (
    "fisher",
    "lora",
    "magnitude",
    "wanda",
    "flap",
    "refit",
    "stream",
    "blocks",
    "hidden",
    "masks",
    "distill",
    "evaluated",
)
SHARED += (*(name for name in SCENARIOS if name.startswith("taylor")), "recover", "checkpointing")
SCENARIOS |= {
    f"shared out: {name}": {**SCENARIOS[name], "options": {**SCENARIOS[name].get("options", {}), "fsdp": 2}}
    for name in SHARED
}


def own_trainer(model: str, data: str, pruning: dict[str, Any], *, processes: int) -> dict[str, Any]:
    """A user's own Trainer with the callback."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(3)  # older versions of trl draw the adapter before they set the seed
    callback = PruningCallback(PruningConfig(**pruning))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=8,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4 // processes,
            max_length=32,
            learning_rate=2e-3,
            logging_steps=1,
            seed=3,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
        )
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(model),
            args=arguments,
            train_dataset=load_dataset("json", data_files=data, split="train"),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[callback],
        )
        callback.lead_(trainer)
        trainer.train()
    assert callback.run is not None
    merged: Any = trainer.model.merge_and_unload()  # type: ignore[union-attr, operator]
    return {**_found(merged, callback.history), "plan": callback.run.plan.to_json(), "steps": callback.steps}


def _found(model: Any, history: Any) -> dict[str, Any]:
    if model.device.type == "meta":  # the first process has the weights
        return {"losses": [point["loss"] for point in history], "logits": []}
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        logits = model.eval()(ids).logits
    return {"losses": [point["loss"] for point in history], "logits": logits[0, -1].tolist()}


def without_training(model: str, data: str, values: dict[str, Any], **options: Any) -> dict[str, Any]:
    config = OneshotConfig(**{"calibration_sequences": 19, "max_length": 32, **values})
    given = RunOptions(**{"eval_sequences": 4, "latency": False, "report": False, **options})
    result = loraprune.oneshot(model, data, config, options=given)
    perplexity = result.metrics["pruned"]["perplexity"]
    return {**_found(result.model, []), "plan": result.plan.to_json(), "perplexity": perplexity, "steps": 8}


def measured_folder(data: str) -> Path:
    """Beside the texts: what is measured on."""
    return Path(data).with_name("measured")


def run(name: str, model: str, data: str, *, processes: int, **options: Any) -> dict[str, Any]:
    """What came of a scenario, with the same sequences in each of eight steps however many processes there are."""
    if name in MEASURED:
        return {"measured": MEASURED[name](model, measured_folder(data), processes)}
    if name == "failing":
        return {"measured": failing(model, measured_folder(data), processes)}
    scenario = SCENARIOS[name]
    if "own" in scenario:
        return own_trainer(model, data, scenario["own"], processes=processes)
    if "oneshot" in scenario:
        of = str(measured_folder(data) / scenario["of"]) if "of" in scenario else model
        return without_training(of, data, scenario["oneshot"], **options)
    training = {
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // processes,
        "max_length": 32,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "seed": 3,
        **scenario.get("training", {}),
        **options.pop("training", {}),
    }
    settings = {"eval_sequences": 4, "latency": False, "report": False, **scenario.get("options", {}), **options}
    if processes == 1:
        settings.pop("fsdp", None)
    given: dict[str, Any] = {
        "training": training,
        "lora": LoraOptions(r=4),
        "options": RunOptions(**settings),
    }
    if "pruning" in scenario:
        result = loraprune.prune(model, data, PruningConfig(**scenario["pruning"]), **given)
    else:
        result = loraprune.recover(model, data, **given)
    return {
        **_found(result.model, result.metrics["history"]),
        "plan": result.plan.to_json(),
        "perplexity": result.metrics["pruned"]["perplexity"],
        "steps": result.metrics["steps"],
    }


def main(arguments: list[str]) -> None:
    """``scenarios.py MODEL DATA RESULTS NAME [NAME ...]``; each name may have options as JSON behind it."""
    model, data, results, *names = arguments
    found: dict[str, Any] = {}
    join()
    for name in names:
        name, _, options = name.partition("@")
        try:
            found[name] = run(name, model, data, processes=num_processes(), **json.loads(options or "{}"))
        except (ValueError, OtherProcessError) as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    rank = os.environ.get("RANK", "0")
    Path(f"{results}.{rank}").write_text(json.dumps(found), encoding="utf-8")
    leave()
    assert is_main() == (rank == "0")


if __name__ == "__main__":
    main(sys.argv[1:])
