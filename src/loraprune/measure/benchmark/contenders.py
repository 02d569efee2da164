"""Models of a benchmark before their weights are loaded: their labels, and how to load each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraprune.checkpoint.adapter import find_adapter
from loraprune.checkpoint.load import CheckpointError, random_model
from loraprune.checkpoint.source import ModelSource
from loraprune.checkpoint.weight_files import weight_files
from loraprune.layers.quantized import is_quantized_model, stored_bytes
from loraprune.layers.unwrap import base_model
from loraprune.measure.benchmark.config import BenchConfig
from loraprune.measure.model import check_measurable
from loraprune.record.history import base_pruning
from loraprune.tasks.registry import task_of_model, task_of_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model to measure.

    Attributes:
        label: unique label in a benchmark.
        source: source of the model.
        task: name of its task.
        adapter: ``"merged"`` or ``"unmerged"``.
        random_seed: seed of random weights, for a model of which only the shapes matter.
    """

    label: str
    source: ModelSource
    task: str
    adapter: str | None = None
    random_seed: int | None = None

    def load(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """Return the model in evaluation mode. A model in memory is neither moved nor changed."""
        if self.random_seed is None:
            return self.source.load(dtype, device, merge=self.adapter != "unmerged")
        with torch.random.fork_rng(), device:
            torch.manual_seed(self.random_seed)
            return random_model(self.source.config, self.source.auto_class, dtype).eval()

    @property
    def has_files(self) -> bool:
        """Whether its weights come from files."""
        return self.source.loaded is None and self.random_seed is None

    def parameters(self) -> int:
        """Approximate number of parameters, from the shapes alone; 0 if its class cannot be built without weights."""
        try:
            return int(self.source.shapes.num_parameters())
        except Exception:  # from an unknown source: only the memory estimate needs the number
            return 0

    def file_bytes(self, model: PreTrainedModel) -> tuple[int | None, str | None]:
        """Bytes of its weights in files, with their source: files on disk, or parameters and stored dtype."""
        adapter = self.source.adapter
        folders = [Path(self.source.checkpoint or ""), *([] if adapter is None else [adapter.folder])]
        if self.has_files and self.adapter != "merged" and folders[0].is_dir():
            files = [weight_files(folder) for folder in folders]
            if all(files):
                return sum(path.stat().st_size for found in files for path in found), "files"
        if is_quantized_model(model):
            return None, None
        return stored_bytes(model, self.source.stored_dtype.itemsize), "parameters and stored dtype"


def contenders_of(names: Sequence[str], config: BenchConfig) -> list[Contender]:
    """Return all models of a benchmark in measuring order. An adapter appears unmerged and merged.

    Raises:
        CheckpointError: a name is nothing that can be measured.
        ValueError: models have different tasks.
    """
    found: list[Contender] = []
    labels = unique_labels(names)
    for name, label in zip(names, labels, strict=True):
        found += _contenders_of_name(name, label, config)
    if config.base is not None and not config.against_base and all(contender.adapter is None for contender in found):
        raise CheckpointError("base is for an adapter or --against-base, and there is neither. Leave it out.")
    if config.against_base:
        found.insert(0, dense_contender(names[0], config))
    return _comparable_contenders(found)


def _comparable_contenders(contenders: list[Contender]) -> list[Contender]:
    """Check that the models have the same task, and return them.

    Raises:
        ValueError: they do not.
    """
    tasks = {contender.task: contender.label for contender in contenders}
    if len(tasks) > 1:
        (first, a), (second, b) = list(tasks.items())[:2]
        raise ValueError(f"{a} is made for {first} and {b} for {second}: their times do not compare. Run them alone.")
    return contenders


def _contenders_of_name(name: str, label: str, config: BenchConfig) -> list[Contender]:
    base = config.base if find_adapter(name, base=config.base, revision=config.revision) is not None else None
    found = ModelSource.of_any(name, base=base, trust_remote_code=config.trust_remote_code, revision=config.revision)
    source = check_measurable(found, needs_tokenizer=False)
    task = task_of_source(source).name
    if source.adapter is None:
        return [Contender(label=label, source=source, task=task)]
    return [
        Contender(label=f"{label} ({how})", source=source, task=task, adapter=how) for how in ("unmerged", "merged")
    ]


def dense_contender(name: str, config: BenchConfig) -> Contender:
    """Return the dense shapes of a pruned model's base, with random weights, which are as fast as the real ones.

    Only the config of the base is read; its weights are not needed.

    Raises:
        CheckpointError: the base is unknown, or its config is not available.
    """
    base = config.base or _base_of(name, config)
    if base is None:
        raise CheckpointError(
            f"The model that {name} was pruned from is unknown (it has no pruning.json of loraprune). Name the dense "
            "model with --base, or as the first of the models."
        )
    try:
        dense = ModelSource.of(base, trust_remote_code=config.trust_remote_code, described=False, quantized=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name} was pruned from {base}, and the config of that cannot be read: {error} Only its config.json is "
            "needed: name a folder that has it with --base."
        ) from error
    if dense.quantized:
        raise CheckpointError(f"{base} is quantized, and random weights would not be. Name it as the first model.")
    label = f"{Path(base).name}, random weights"
    return Contender(label=label, source=dense, task=task_of_source(dense).name, random_seed=config.seed)


def _base_of(name: str, config: BenchConfig) -> str | None:
    adapter = find_adapter(name, revision=config.revision)
    if adapter is not None:
        return adapter.base
    history = base_pruning(name, config.revision)
    return None if history is None else history.base_model


def unique_labels(names: Sequence[str]) -> list[str]:
    """Return the shortest endings of paths that distinguish names. Repeated names get numbers."""
    parts = [[part for part in str(name).rstrip("/").split("/") if part not in ("", ".")] or [name] for name in names]
    labels: list[str] = []
    for position, own in enumerate(parts):
        others = [other for i, other in enumerate(parts) if i != position and other != own]
        length = 2 if own[-1] == "adapter" else 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        label = "/".join(own[-length:])
        again = sum(other == own for other in parts[:position])
        labels.append(f"{label} #{again + 1}" if again else label)
    return labels


def in_memory(models: Mapping[str, PreTrainedModel]) -> list[Contender]:
    """Return contenders for models in memory, which are neither moved nor changed.

    Raises:
        ValueError: there are no models, or they are on several devices or have different tasks.
    """
    if not models:
        raise ValueError("The model is missing. Name at least one folder or Hub name.")
    devices = {next(model.parameters()).device for model in models.values()}
    if len(devices) > 1:
        raise ValueError(f"The models are on {' and '.join(map(str, devices))}: their times do not compare.")
    contenders = []
    for label, model in models.items():
        inner = base_model(model)
        source = ModelSource(name=label, config=inner.config, loaded=model)
        task = task_of_model(inner, "AutoModelForCausalLM").name
        contenders.append(Contender(label=label, source=source, task=task))
    return _comparable_contenders(contenders)
