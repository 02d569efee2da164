"""Recipes: values of a wrong kind, keys twice, keys that have no place, recipes of another command."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cli.refusals.wrong import Prepare, Wrong, wrong

PRUNE = "prune model --data data.jsonl -o out"


def written(content: str | bytes) -> Prepare:
    """Writes the recipe."""

    def prepare(folder: Path) -> object:
        return (folder / "r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def holds(content: str | bytes, *says: str, line: str = PRUNE) -> Wrong:
    """A row of a recipe with some content."""
    return wrong(f"{line} --config r.yaml", *says, prepare=written(content))


BOMB = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 10))

FILES: tuple[Wrong, ...] = (
    holds("", "r.yaml must be a mapping", "`ratio: 0.5`"),
    holds("0.5", "r.yaml must be a mapping"),
    holds("- ratio\n- 0.5", "r.yaml must be a mapping"),
    holds("ratio: 0.3\nratio: 0.4", "it holds ratio twice", "leave one out"),
    holds("lora_r: 3\nlora-r: 4", "it holds lora_r twice"),
    holds('ratio: "0.5', "r.yaml cannot be read", "line 1"),
    holds("? [ratio]\n: 2", "r.yaml cannot be read", "unhashable key"),
    holds("ratio: \xff".encode("latin-1"), "not UTF-8 text"),
    holds("ratio: 0.5 #" + "x" * (1 << 20), "1048576 bytes"),
    holds("ratio: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    holds("x0: &x0 [lol]\n" + BOMB, "alias", "write the values out"),
    holds("ratio: &a [*a]", "alias"),
    holds("ratio: !!python/object/apply:os.system [ls]", "r.yaml cannot be read", "python/object"),
    wrong(f"{PRUNE} --config model", "The recipe model cannot be read", "Name a YAML file"),
    wrong(f"{PRUNE} --config model/model.safetensors", "not UTF-8 text"),
    wrong(f"{PRUNE} --config pipe", "pipe", "Name a YAML file", prepare=lambda folder: os.mkfifo(folder / "pipe")),
    wrong(f"{PRUNE} --config /dev/zero", "/dev/zero", "Name a YAML file"),
    wrong(f"{PRUNE} --config missing.yaml", "missing.yaml does not exist", "loraprune-paper"),
    wrong(f"{PRUNE} --config flap", "flap is for loraprune oneshot, not for loraprune prune"),
    wrong("oneshot model --data data.jsonl -o out --config loraprune-paper", "is for loraprune prune"),
    wrong("recover model --data data.jsonl -o out --config llm-pruner", "is for loraprune oneshot"),
    wrong("compare-criteria model --data data.jsonl --config pst", "is for loraprune prune"),
)

KEYS: tuple[Wrong, ...] = (
    holds("ration: 0.3", "'ration'", "Did you mean 'ratio'?"),
    holds("lerning_rate: 1", "'lerning_rate'", "Did you mean 'learning_rate'?"),
    holds("1: 2", "unknown option '1'"),
    holds("config: flap", "holds config", "Write the values out"),
    holds("trust_remote_code: true", "trust_remote_code", "Only the command line"),
    holds("keep_zeros: true", "'keep_zeros'", "is an option of loraprune recover"),
    holds("sparsity: 2:4", "'sparsity'", "is an option of loraprune oneshot"),
    holds("output_dir: x", "--output-dir", "-o/--output"),
    holds("ratio: 0.4\nlora_r: 3", "'lora_r'", "loraprune prune", line="oneshot model --data data.jsonl -o out"),
    holds("ratio: 0.5", "'ratio'", "loraprune demo, prune", line="recover model --data data.jsonl -o out"),
)

VALUES: tuple[Wrong, ...] = (
    holds("ratio: half", "ratio is 'half'", "--ratio: 'half' is not a number"),
    holds("ratio: true", "ratio is True", "is not a number"),
    holds("ratio: [0.1]", "ratio is [0.1]", "takes no list"),
    holds("ratio: {a: 1}", "ratio is {'a': 1}", "takes no mapping"),
    holds("ratio:", "ratio has no value", "leave it out"),
    holds("learning_rate:", "learning_rate has no value"),
    holds("learning_rate: [1]", "learning_rate is [1]", "takes no list"),
    holds("learning_rate: .nan", "learning_rate is nan", "finite"),
    holds("max_steps: true", "max_steps is True", "is not a whole number"),
    holds("cuts: 2.5", "cuts is 2.5", "is not a whole number"),
    holds('verify: "yes"', "verify is 'yes'", "true or false"),
    holds("prompt: 3", "prompt is 3", "Put it in quotes"),
    holds("push_to_hub: true", "push_to_hub is True", "must be text"),
    holds("data_name: true", "data_name is True", "must be text"),
    holds("output: true", "output is True", "must be text", line="prune model --data data.jsonl"),
    holds("data: [[data.jsonl]]", "only plain values", line="prune model -o out"),
    holds("data: {train: data.jsonl}", "takes no mapping", line="prune model -o out"),
    holds("data:", "The data is missing", "--data", line="prune model -o out"),
    holds("model: [model]", "takes no list", line="prune --data data.jsonl -o out"),
    holds("keep_layers: [true]", "keep_layers is [True]", "plain values"),
    holds("keep_layers: [1.5]", "'1.5' is not a list of layers"),
    holds("keep_layers: 0-99999999", "no model has"),
    holds("dimensions: []", "dimensions is []", "leave the option out"),
    holds("lora_target_modules: []", "the list is empty"),
    holds('lora_target_modules: ["--help"]', "LoRA cannot adapt --help"),
    holds("lr_scheduler_kwargs: 3", "lr_scheduler_kwargs is '3'", "mapping"),
    holds("report_to: [nothing]", "report_to is 'nothing'"),
    holds("sparsity: true", "'True' is neither", line="oneshot model --data data.jsonl -o out"),
    holds("criteria: []", "criteria is []", line="compare-criteria model --data data.jsonl"),
)

TABLE = (*FILES, *KEYS, *VALUES)
