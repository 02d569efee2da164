"""The models of a benchmark before their weights are loaded: what they are called, and how to get each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.adapter import find_adapter
from loraprune.checkpoint.load import (
    CheckpointError,
    auto_class_of,
    checkpoint_dtype,
    context_of,
    load_config,
    meta_model,
    random_model,
)
from loraprune.checkpoint.shards import weight_files
from loraprune.layers.quantized import is_quantized_model, stored_bytes
from loraprune.layers.unwrap import base_model
from loraprune.measure.benchmark.config import BenchConfig
from loraprune.measure.model import load_measured
from loraprune.record.history import base_pruning
from loraprune.tasks.registry import task_of_config, task_of_model
from loraprune.tasks.source import MeasurableModel, check_measurable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that is to be measured.

    Attributes:
        label: unique among those of a benchmark.
        name: as it was given.
        task: name of what it is made for.
        load: gets it, in evaluation mode.
        config: of the model; of an adapter, its base's.
        context: tokens that it can read at most, or None.
        adapter: ``"merged"`` or ``"unmerged"``.
        dtype: of a model that is in memory already, else None.
        random_weights: whether its weights are random.
        folder: that holds its weights, where that is on disk; ``adapter_folder``: likewise.
        fingerprint: computes a hash of its files.
    """

    label: str
    name: str
    task: str
    load: Callable[[torch.dtype, torch.device], PreTrainedModel]
    config: PretrainedConfig
    context: int | None
    adapter: str | None = None
    dtype: torch.dtype | None = None
    random_weights: bool = False
    folder: Path | None = None
    adapter_folder: Path | None = None
    fingerprint: Callable[[], str | None] = lambda: None

    def parameters(self) -> int:
        """About how many it has, from its shapes alone; 0 where its class cannot be built without weights."""
        try:
            return int(meta_model(self.config, auto_class_of(self.config)).num_parameters())
        except Exception:  # of unknown making: only the estimate of memory needs the number
            return 0

    def file_bytes(self, model: PreTrainedModel) -> tuple[int | None, str | None]:
        """Bytes of its weights in files, and where they come from: files on disk, or parameters and stored dtype."""
        folders = [folder for folder in (self.folder, self.adapter_folder) if folder is not None]
        on_disk = [sum(path.stat().st_size for path in weight_files(folder)) for folder in folders]
        if self.folder is not None and self.adapter != "merged" and all(on_disk):
            return sum(on_disk), "files"
        if is_quantized_model(model):
            return None, None
        return stored_bytes(model, checkpoint_dtype(self.config).itemsize), "parameters and stored dtype"


def contenders_of(names: Sequence[str], config: BenchConfig) -> list[Contender]:
    """All models of a benchmark, in the order in which they take turns; of an adapter unmerged and merged.

    Raises:
        CheckpointError: a name stands for nothing that can be measured.
        ValueError: models are made for different things.
    """
    found: list[Contender] = []
    labels = unique_labels(names)
    for name, label in zip(names, labels, strict=True):
        found += _contenders_of_name(name, label, config)
    if config.base is not None and not config.against_base and all(contender.adapter is None for contender in found):
        raise CheckpointError("base is that of an adapter, or of --against-base, and there is neither. Leave it out.")
    if config.against_base:
        found.insert(0, dense_contender(names[0], config))
    return _comparable_contenders(found)


def _comparable_contenders(contenders: list[Contender]) -> list[Contender]:
    """The models, once it is sure that they do the same.

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
    known = check_measurable(
        name,
        trust_remote_code=config.trust_remote_code,
        revision=config.revision,
        base=base,
        needs_tokenizer=False,
    )
    if known.adapter is None:
        return [_contender(known, label)]
    return [_contender(known, f"{label} ({how})", how) for how in ("unmerged", "merged")]


def _contender(known: MeasurableModel, label: str, adapter: str | None = None) -> Contender:
    fingerprint = cache(known.fingerprint)

    def load(dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        merge = adapter != "unmerged"
        return load_measured(known, dtype=dtype, device=device, merge=merge, known_fingerprint=fingerprint()).model

    source = Path(known.source)
    return Contender(
        label=label,
        name=known.name,
        task=known.task.name,
        load=load,
        config=known.config,
        context=known.context,
        adapter=adapter,
        folder=source if source.is_dir() else None,
        adapter_folder=None if known.adapter is None else known.adapter.folder,
        fingerprint=fingerprint,
    )


def dense_contender(name: str, config: BenchConfig) -> Contender:
    """The dense shapes that a pruned model was made from, with random weights: as fast as the real ones.

    Only the config of the base is read; its weights need not be there.

    Raises:
        CheckpointError: nothing says what the base was, or its config is not to be had.
    """
    base = config.base or _base_of(name, config)
    if base is None:
        raise CheckpointError(
            f"{name} does not say what it was pruned from (it has no pruning.json of loraprune). Name the dense model "
            "with --base, or as the first of the models."
        )
    try:
        dense = load_config(base, trust_remote_code=config.trust_remote_code, described=False, quantized=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name} was pruned from {base}, and the config of that cannot be read: {error} Only its config.json is "
            "needed: name a folder that has it with --base."
        ) from error
    if getattr(dense, "quantization_config", None):
        raise CheckpointError(f"{base} is quantized, and random weights would not be. Name it as the first model.")
    auto_class = auto_class_of(dense)

    def load(dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        with torch.random.fork_rng(), device:
            torch.manual_seed(config.seed)
            return random_model(dense, auto_class, dtype).eval()

    return Contender(
        label=f"{Path(base).name}, random weights",
        name=base,
        task=task_of_config(dense, auto_class).name,
        load=load,
        config=dense,
        context=context_of(dense, meta_model(dense, auto_class)),
        random_weights=True,
    )


def _base_of(name: str, config: BenchConfig) -> str | None:
    adapter = find_adapter(name, revision=config.revision)
    if adapter is not None:
        return adapter.base
    history = base_pruning(name, config.revision) or {}
    base: Any = history.get("base_model")
    return base if isinstance(base, str) else None


def unique_labels(names: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell names apart; the same name twice gets numbers."""
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
    """Models that are there already; each stays as and where it is.

    Raises:
        ValueError: there is none, they are on several devices, or they are made for different things.
    """
    if not models:
        raise ValueError("No model was given.")
    devices = {next(model.parameters()).device for model in models.values()}
    if len(devices) > 1:
        raise ValueError(f"The models are on {' and '.join(map(str, devices))}: their times do not compare.")
    contenders = []
    for label, model in models.items():
        inner = base_model(model)
        task = task_of_model(inner, "AutoModelForCausalLM")
        contenders.append(
            Contender(
                label=label,
                name=label,
                task=task.name,
                load=lambda dtype, device, model=model: model,  # type: ignore[misc]
                config=inner.config,
                dtype=inner.dtype,
                context=context_of(inner.config, inner) if task.has_tokenizer else None,
            )
        )
    return _comparable_contenders(contenders)
