"""A model before its weights are loaded: what its name stands for, its config, its task, its tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.architectures import UnsupportedArchitectureError, spec_for
from loraprune.checkpoint import fingerprint, undescribed
from loraprune.checkpoint.adapter import AdapterFolder, find_adapter
from loraprune.checkpoint.load import (
    DTYPES,
    CheckpointError,
    checkpoint_dtype,
    context_of,
    default_device,
    load_config,
    load_image_processor,
    load_tokenizer,
    loading_class,
    meta_model,
    working_dtype,
)
from loraprune.tasks.options import RunOptions
from loraprune.tasks.registry import TaskError, task_of_config, task_of_model
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The model of a run before its weights are loaded.

    Attributes:
        loaded: the model where the user gave one, else None.
        origin: checkpoint that it comes from; None where a model that was given names none.
        config: a copy of the model's.
        task: that the model is tuned for.
        device: to train on.
        shapes: the model that was given, or one without weights.
    """

    loaded: PreTrainedModel | None
    origin: str | None
    config: PretrainedConfig
    task: Task
    device: torch.device
    shapes: PreTrainedModel

    @property
    def name(self) -> str:
        """For the record."""
        return self.origin or "model"


def find_source(model: str | Path | PreTrainedModel, options: RunOptions) -> ModelSource:
    """Read a checkpoint's config, or that of a model, and find out what it is tuned for."""
    if isinstance(model, (str, Path)):
        model = str(Path(model).expanduser()) if str(model).startswith("~") else str(model)
        config = load_config(model, trust_remote_code=options.trust_remote_code, revision=options.revision)
        task = _find_task(None, config, options)
        return ModelSource(
            loaded=None,
            origin=model,
            config=copy.deepcopy(config),
            task=task,
            device=default_device(),
            shapes=meta_model(config, task.auto_class),
        )
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it describes how this model was loaded, and not what it is
    if not getattr(config, "architectures", None):
        config.architectures = [type(model).__name__]
    return ModelSource(
        loaded=model,
        origin=str(getattr(model.config, "_name_or_path", "") or "") or None,
        config=config,
        task=_find_task(model, model.config, options),
        device=next(model.parameters()).device,
        shapes=model,
    )


def _find_task(loaded: PreTrainedModel | None, config: PretrainedConfig, options: RunOptions) -> Task:
    """The task of the model, once it is sure that what was asked for goes with it."""
    auto_class = spec_for(config).auto_class
    task = task_of_config(config, auto_class) if loaded is None else task_of_model(loaded, auto_class)
    task.check_model(config)
    if options.prompt and not task.writes_text:
        raise ValueError(f"A prompt was given, and a model for {task.name} writes no text. Leave the prompt out.")
    return task


def find_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None, source: ModelSource, options: RunOptions
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was given, or the one of a checkpoint: the one named, or the model's own."""
    if not source.task.has_tokenizer:
        if tokenizer is not None:
            raise ValueError(f"A tokenizer was given, but a model for {source.task.name} reads no text. Leave it out.")
        return None
    if isinstance(tokenizer, (str, Path)):
        return load_tokenizer(str(tokenizer), trust_remote_code=options.trust_remote_code)
    if tokenizer is not None:
        return tokenizer
    if source.origin is None:
        raise ValueError("The model that was passed in names no checkpoint to load a tokenizer from: pass tokenizer=.")
    return load_tokenizer(source.origin, trust_remote_code=options.trust_remote_code, revision=options.revision)


# What a name stands for that is to be measured, found out and checked without loading weights.


@dataclass(frozen=True, kw_only=True)
class MeasurableModel:
    """A model that can be loaded and measured, as far as that is known without its weights.

    Attributes:
        name: as it was given.
        task: that it is made for; ``auto_class``: of transformers, that loads it.
        config: of the model; of an adapter, its base's.
        tokenizer: of a model that reads text, else None; ``image_processor``: of one that reads images, if it has one.
        context: tokens that it can read at most, or None.
        adapter: where the name is that of an adapter.
        tokenizer_name: checkpoint of the tokenizer where the user named another one.
        revision: of a hub checkpoint; ``trust_remote_code``: whether code of the checkpoint is run.
    """

    name: str
    task: Task
    auto_class: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    image_processor: Any
    context: int | None
    adapter: AdapterFolder | None = None
    tokenizer_name: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def source(self) -> str:
        """The checkpoint that holds the whole model: of an adapter, the base."""
        return self.name if self.adapter is None else self.adapter.base

    @property
    def source_revision(self) -> str | None:
        """The revision of that checkpoint."""
        return self.revision if self.adapter is None else self.adapter.base_revision

    @property
    def vocabulary(self) -> int | None:
        """Tokens that the model has embeddings for."""
        return _vocabulary(self.config)

    def dtype(self, asked: torch.dtype | str | None, device: torch.device) -> torch.dtype:
        """The dtype to measure in: the one asked for, or the checkpoint's own; on a CPU 32 bits."""
        if isinstance(asked, str):
            if asked not in DTYPES:
                raise ValueError(f"dtype is {asked!r}; choose one of {', '.join(DTYPES)}.")
            return DTYPES[asked]
        if asked is not None:
            return asked
        stored = checkpoint_dtype(self.config)
        # Training would avoid float16 on old accelerators; a forward pass is what it was made for.
        keeps = stored == torch.float16 and device.type != "cpu"
        return stored if keeps else working_dtype(stored, device)

    def fingerprint(self) -> str:
        """A hash of the files: the model's, a base's, those of a tokenizer from elsewhere; of hub names, commits."""
        parts = [_identity(self.source, self.source_revision)]
        if self.adapter is not None:
            parts.append(fingerprint.folder_fingerprint(self.adapter.folder))
        if self.tokenizer_name is not None:
            parts.append(_identity(self.tokenizer_name, None))
        return fingerprint.joined_fingerprint(*parts)


def check_measurable(
    name: str | Path,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    needs_tokenizer: bool = True,
) -> MeasurableModel:
    """Find out what a name stands for and whether it can be measured, without loading weights.

    Args:
        name: a checkpoint's folder or hub name, or those of an adapter.
        trust_remote_code: run code that the checkpoint brings.
        revision: of a hub name.
        tokenizer: checkpoint to take the tokenizer from; None takes the model's own, or that of an adapter's base.
        base: of an adapter, in place of the one that it names.
        needs_tokenizer: whether a model that reads text must have one; speed can be measured without.

    Raises:
        CheckpointError: there is no such checkpoint, an adapter's base is missing, the tokenizer does not fit, or the
            model is made for something that cannot be measured.
    """
    name = str(Path(name).expanduser()) if str(name).startswith("~") else str(name)
    adapter = find_adapter(name, base=base, revision=revision)
    if adapter is None and base is not None:
        raise CheckpointError(f"--base names the base of an adapter, and {name} is none. Leave it out.")
    source, source_revision = (name, revision) if adapter is None else (adapter.base, adapter.base_revision)
    config = _config(name, adapter, source, source_revision, trust_remote_code)
    auto_class, task = _kind(source, config)
    found_tokenizer = None
    if task.has_tokenizer and (needs_tokenizer or tokenizer is not None):
        found_tokenizer = _tokenizer(tokenizer, adapter, source, source_revision, trust_remote_code)
        _check_vocabulary(tokenizer or name, found_tokenizer, config)
    elif tokenizer is not None:
        raise CheckpointError(f"A tokenizer was given, and {name} ({task.name}) reads no text. Leave --tokenizer out.")
    processor = None
    if not task.has_tokenizer:
        processor = load_image_processor(source, trust_remote_code=trust_remote_code, revision=source_revision)
    return MeasurableModel(
        name=name,
        task=task,
        auto_class=auto_class,
        config=config,
        tokenizer=found_tokenizer,
        image_processor=processor,
        context=_context(config, auto_class) if task.has_tokenizer else None,
        adapter=adapter,
        tokenizer_name=tokenizer,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def _config(
    name: str, adapter: AdapterFolder | None, source: str, revision: str | None, trust_remote_code: bool
) -> PretrainedConfig:
    def read() -> PretrainedConfig:
        return load_config(
            source, trust_remote_code=trust_remote_code, revision=revision, described=False, quantized=True
        )

    if adapter is None:
        return read()
    if find_adapter(source) is not None:
        raise CheckpointError(f"{name} is an adapter on another adapter, {source}. Merge that one into its base first.")
    try:
        return read()
    except CheckpointError as error:
        raise CheckpointError(
            f"{name} is an adapter, and its base {source} cannot be read: {error} If the base is elsewhere, name it "
            "with --base."
        ) from error


def _kind(name: str, config: PretrainedConfig) -> tuple[str, Task]:
    """The class of transformers that loads a model, and what the model is made for.

    Raises:
        CheckpointError: it is made for something else than what can be measured.
    """
    names = getattr(config, "architectures", None) or ()
    auto_class = loading_class(names[0]) if names else None
    try:
        if auto_class is None:
            try:
                auto_class = spec_for(config).auto_class
            except UnsupportedArchitectureError:
                auto_class = undescribed.any_auto_class(config)
        return auto_class, task_of_config(config, auto_class)
    except (TaskError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be measured: {error}") from error


def _tokenizer(
    asked: str | None, adapter: AdapterFolder | None, source: str, revision: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that was asked for, an adapter's own, or the model's."""
    if asked is not None:
        return load_tokenizer(asked, trust_remote_code=trust_remote_code)
    if adapter is not None and (adapter.folder / "tokenizer_config.json").is_file():
        return load_tokenizer(str(adapter.folder), trust_remote_code=trust_remote_code)
    return load_tokenizer(source, trust_remote_code=trust_remote_code, revision=revision)


def _vocabulary(config: PretrainedConfig) -> int | None:
    inner: Callable[[], Any] = getattr(config, "get_text_config", lambda: config)
    found = getattr(inner(), "vocab_size", None)
    return found if isinstance(found, int) else None


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Make sure that the model has an embedding for every token, those aside that were added to a tokenizer later.

    Raises:
        CheckpointError: it has not.
    """
    known = _vocabulary(config)
    if known is not None and tokenizer.vocab_size > known:
        raise CheckpointError(
            f"The tokenizer of {name} does not fit the model: it has {tokenizer.vocab_size:,} tokens, and the model "
            f"knows {known:,}. Name the right one with --tokenizer."
        )


def _context(config: PretrainedConfig, auto_class: str) -> int | None:
    try:
        shapes: nn.Module = meta_model(config, auto_class)
    except Exception:  # a family of unknown making: its config has to do
        shapes = torch.nn.Identity()
    return context_of(config, shapes)


def _identity(name: str, revision: str | None) -> str:
    path = Path(name).expanduser()
    return fingerprint.folder_fingerprint(path) if path.is_dir() else fingerprint.hub_fingerprint(name, revision)
