"""A model before its weights are loaded: its config, shapes, dtype and tokenizer, and how to load it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.checkpoint import fingerprint as fingerprints
from loraprune.checkpoint.adapter import AdapterFolder, find_adapter, with_adapter
from loraprune.checkpoint.agreement import agreeing, local_folder
from loraprune.checkpoint.exports.semi_structured import is_packed, load_packed
from loraprune.checkpoint.load import (
    CheckpointError,
    auto_class_of,
    checkpoint_dtype,
    context_of,
    default_device,
    load_config,
    load_model,
    load_tokenizer,
    loading_class,
    meta_model,
    working_dtype,
)
from loraprune.checkpoint.names import check_no_preset, expanded
from loraprune.checkpoint.reading import reading
from loraprune.checkpoint.weight_files import check_weight_files, dtype_in_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSource:
    """A model before its weights are loaded: a folder, a name on the Hub, an adapter, or a model in memory.

    What has to be read or built is computed on first access and then kept.

    Attributes:
        name: name as given; for a model in memory, its original checkpoint, or ``"model"``.
        config: config of the model, or of an adapter's base; for a model in memory, a copy.
        checkpoint: checkpoint of the whole model, or of an adapter's base; None for a config alone, and for a model in
            memory that names no checkpoint.
        loaded: model in memory, or None.
        adapter: adapter that the name stands for, or None.
        given_tokenizer: a tokenizer, or the checkpoint to take it from; None is the model's own.
        trust_remote_code: whether to run code from the checkpoint.
        revision: revision of a Hub checkpoint.
    """

    name: str
    config: PretrainedConfig
    checkpoint: str | None = None
    loaded: PreTrainedModel | None = field(default=None, repr=False)
    adapter: AdapterFolder | None = None
    given_tokenizer: PreTrainedTokenizerBase | str | Path | None = field(default=None, repr=False)
    trust_remote_code: bool = False
    revision: str | None = None

    @classmethod
    def of(
        cls,
        model: str | Path | PreTrainedModel,
        *,
        described: bool = True,
        quantized: bool = False,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> ModelSource:
        """Find the model for a folder, a name on the Hub, or a model in memory. Does not load weights.

        Args:
            model: the name, or the model.
            described: whether the family must have a description.
            quantized: whether the checkpoint may be quantized.
            tokenizer: a tokenizer, or the checkpoint to take it from; None is the model's own.
            trust_remote_code: run code from the checkpoint.
            revision: revision of a Hub checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, it needs its own code, it is quantized and must not be, or
                its files and its config have different numbers of layers.
            UnsupportedArchitectureError: the family has no description.
        """
        further: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        if isinstance(model, (str, Path)):
            name = _checkpoint_of(model)
            config = agreeing(load_config(name, described=described, quantized=quantized, **further), name, revision)
            return cls(name=name, config=config, checkpoint=name, given_tokenizer=tokenizer, **further)
        config = copy.deepcopy(model.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # it describes how this model was loaded, not the checkpoint
        if not getattr(config, "architectures", None):
            config.architectures = [type(model).__name__]
        origin = str(getattr(model.config, "_name_or_path", "") or "") or None
        return cls(
            name=origin or "model", config=config, checkpoint=origin, loaded=model, given_tokenizer=tokenizer, **further
        )

    @classmethod
    def of_any(
        cls,
        name: str | Path,
        *,
        base: str | None = None,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> ModelSource:
        """Find the model for a name. Adapters, quantized models and unknown families are accepted, too.

        Args:
            name: folder or Hub name of a checkpoint or of an adapter.
            base: base to use instead of the one that the adapter names.
            tokenizer: checkpoint to take the tokenizer from; None is that of the adapter or the model.
            trust_remote_code: run code from the checkpoint.
            revision: revision of a Hub name.

        Raises:
            CheckpointError: there is no such checkpoint, or an adapter's base is missing or an adapter itself.
        """
        name = _checkpoint_of(name)
        adapter = find_adapter(name, base=base, revision=revision)
        if adapter is None:
            if base is not None:
                raise CheckpointError(
                    f"--base names the base of an adapter, but {name} is not an adapter. Leave it out."
                )
            further: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
            return cls.of(name, described=False, quantized=True, tokenizer=tokenizer, **further)
        return cls(
            name=name,
            config=_base_config(name, adapter, trust_remote_code),
            checkpoint=adapter.base,
            adapter=adapter,
            given_tokenizer=tokenizer,
            trust_remote_code=trust_remote_code,
            revision=revision,
        )

    @property
    def checkpoint_revision(self) -> str | None:
        """The revision of ``checkpoint``."""
        return self.revision if self.adapter is None else self.adapter.base_revision

    @property
    def folder(self) -> Path | None:
        """The folder of ``checkpoint``, or its folder in the Hub's cache; None if there is none."""
        if self.loaded is not None or self.checkpoint is None:
            return None
        return local_folder(self.checkpoint, self.checkpoint_revision)

    @cached_property
    def auto_class(self) -> str:
        """The auto class of transformers that loads the model.

        Raises:
            ValueError: no auto class loads it.
        """
        above = () if self.loaded is None else type(self.loaded).__mro__
        found = (loading_class(each.__name__) for each in above)
        return next((name for name in found if name), None) or auto_class_of(self.config)

    @cached_property
    def shapes(self) -> PreTrainedModel:
        """The model on the meta device, without weights; a model in memory as it is."""
        if self.loaded is not None:
            return self.loaded
        auto_class, config = self.auto_class, copy.deepcopy(self.config)
        what, remedy = f"No model can be made from the config of {self.name}", "Correct its config.json."
        with reading(what, remedy, self.config.to_dict()):
            return meta_model(config, auto_class)

    @cached_property
    def context(self) -> int | None:
        """The largest number of tokens that the model can read; None if its positions have no limit."""
        try:
            shapes: nn.Module = self.shapes
        except ValueError:  # no model can be made: use the config alone
            shapes = nn.Identity()
        return context_of(self.config, shapes)

    @property
    def recomputes(self) -> bool:
        """Whether the model supports gradient checkpointing."""
        return bool(self.shapes.supports_gradient_checkpointing)

    @property
    def vocabulary(self) -> int | None:
        """The number of tokens in the vocabulary, as the config says; None if it does not."""
        config: Any = self.config
        found = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "vocab_size", None)
        return found if isinstance(found, int) else None

    @property
    def quantized(self) -> bool:
        """Whether the checkpoint itself is quantized."""
        return bool(getattr(self.config, "quantization_config", None))

    @property
    def packed(self) -> bool:
        """Whether the checkpoint holds packed 2:4 weights, which are for inference."""
        return self.loaded is None and self.checkpoint is not None and is_packed(Path(self.checkpoint))

    def check_weights(self) -> None:
        """Make sure that all weight files of a folder exist and have readable headers.

        Raises:
            CheckpointError: a file is missing or broken.
        """
        if self.loaded is None and self.checkpoint is not None and not self.packed:
            check_weight_files(self.checkpoint)

    def check_trainable(self) -> None:
        """Make sure that the weights exist and can be changed.

        Raises:
            CheckpointError: the weights are missing, broken or packed.
        """
        self.check_weights()
        if self.packed:
            raise CheckpointError(
                f"{self.name} holds packed 2:4 weights, which are for inference only. Name the checkpoint that it was "
                "exported from."
            )

    @property
    def device(self) -> torch.device:
        """The device of a model in memory; else the current CUDA device, or the CPU if there is none."""
        return default_device() if self.loaded is None else next(self.loaded.parameters()).device

    @cached_property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the stored weights, from their files or, without local files, from the config.

        For a quantized checkpoint it is the config's, because its files mix several dtypes.
        """
        if self.loaded is not None:
            return self.loaded.dtype
        folder = None if self.quantized else self.folder
        return (dtype_in_files(folder) if folder is not None else None) or checkpoint_dtype(self.config)

    def working_dtype(self, device: torch.device) -> torch.dtype:
        """Return the dtype to work in on a device: that of a model in memory, else that of :func:`working_dtype`."""
        return working_dtype(self.stored_dtype, device) if self.loaded is None else self.stored_dtype

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The given tokenizer (or that of the given checkpoint), else the adapter's, else the model's.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
            ValueError: a model in memory names no checkpoint.
        """
        given = self.given_tokenizer
        if given is not None and not isinstance(given, (str, Path)):
            return given
        if given is not None:
            return load_tokenizer(expanded(given), trust_remote_code=self.trust_remote_code)
        if self.adapter is not None and (self.adapter.folder / "tokenizer_config.json").is_file():
            return load_tokenizer(str(self.adapter.folder), trust_remote_code=self.trust_remote_code)
        if self.checkpoint is None:
            raise ValueError("The model that you passed names no checkpoint to load a tokenizer from. Pass tokenizer=.")
        return load_tokenizer(
            self.checkpoint, trust_remote_code=self.trust_remote_code, revision=self.checkpoint_revision
        )

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the model, its adapter, and a separate tokenizer: hashes of files, or commits on the Hub."""
        assert self.checkpoint is not None
        parts = [_identity(self.checkpoint, self.checkpoint_revision)]
        if self.adapter is not None:
            parts.append(fingerprints.folder_fingerprint(self.adapter.folder))
        if isinstance(self.given_tokenizer, (str, Path)):
            parts.append(_identity(str(self.given_tokenizer), None))
        return fingerprints.joined_fingerprint(*parts)

    def load(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        quantization: str | None = None,
        merge: bool = True,
        sharded: bool = False,
    ) -> PreTrainedModel:
        """Load the model with its weights, in evaluation mode. A model in memory is returned as it is.

        Args:
            dtype: dtype of weights that are not quantized. Packed 2:4 weights keep theirs on a GPU.
            device: device to load onto.
            quantization: one of :data:`~loraprune.options.precision.QUANTIZATIONS`, or None.
            merge: merge an adapter into its base; otherwise return a ``PeftModel``.
            sharded: shard the weights over the processes of the run (FSDP2).

        Raises:
            CheckpointError: weights are missing or broken, or an adapter does not fit its base.
            RuntimeFormatError: packed 2:4 weights are of another version, or the device cannot multiply them.
        """
        if self.loaded is not None:
            return self.loaded
        assert self.checkpoint is not None
        model: Any
        if self.packed:
            model = load_packed(Path(self.checkpoint), device, dtype)
        else:
            model = load_model(
                self.checkpoint,
                dtype,
                device,
                auto_class=self.auto_class,
                trust_remote_code=self.trust_remote_code,
                revision=self.checkpoint_revision,
                quantization=quantization,
                quantized=self.quantized,
                sharded=sharded,
            )
        if self.adapter is not None:
            model = with_adapter(model, self.adapter, self.name, merge=merge, dtype=dtype)
            # Merging moves a quantized model to CPU memory.
            model = model.to(device) if merge else model
        loaded: PreTrainedModel = model.eval()
        return loaded


def _checkpoint_of(name: str | Path) -> str:
    """Expand a model's name; see :func:`expanded`.

    Raises:
        ValueError: the name is a preset, which has no weights.
    """
    check_no_preset(name)
    return expanded(name)


def _identity(name: str, revision: str | None) -> str:
    path = Path(name).expanduser()
    return fingerprints.folder_fingerprint(path) if path.is_dir() else fingerprints.hub_fingerprint(name, revision)


def _base_config(name: str, adapter: AdapterFolder, trust_remote_code: bool) -> PretrainedConfig:
    """Return the config of an adapter's base.

    Raises:
        CheckpointError: the base is missing, or an adapter itself.
    """
    if find_adapter(adapter.base) is not None:
        raise CheckpointError(
            f"{name} is an adapter on another adapter, {adapter.base}. First merge that one into its base."
        )
    try:
        config = load_config(
            adapter.base,
            trust_remote_code=trust_remote_code,
            revision=adapter.base_revision,
            described=False,
            quantized=True,
        )
        return agreeing(config, adapter.base, adapter.base_revision)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name} is an adapter, but its base {adapter.base} cannot be read: {error} If the base is elsewhere, name "
            "it with --base."
        ) from error
