"""A model before its weights: what its name stands for, its config, shapes, dtype and tokenizer, and how it loads."""

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
    """A model before its weights are loaded: a folder, a name on the hub, an adapter of either, or one in memory.

    What takes reading or building is worked out when it is first asked for, and once.

    Attributes:
        name: as it was given; of a model in memory, the checkpoint that it comes from, or ``"model"``.
        config: of the model; of an adapter, its base's; of a model in memory, a copy.
        checkpoint: that holds the whole model: of an adapter, its base; None of a config alone, and of a model that
            names none.
        loaded: the model where it is in memory already.
        adapter: where the name is that of an adapter.
        given_tokenizer: a tokenizer, or the checkpoint to take it from; None is the model's own.
        trust_remote_code: run code that the checkpoint brings.
        revision: of a hub checkpoint.
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
        """What a folder, a name on the hub, or a model in memory stands for; reads a config at most.

        Args:
            model: the name, or the model.
            described: whether the family must have a description.
            quantized: whether the checkpoint may be quantized.
            tokenizer: a tokenizer, or the checkpoint to take it from; None is the model's own.
            trust_remote_code: run code that the checkpoint brings.
            revision: of a hub checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, it needs code of its own, it is quantized and may not be, or
                its files have another number of layers than its config says.
            UnsupportedArchitectureError: the family has no description.
        """
        further: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        if isinstance(model, (str, Path)):
            name = _checkpoint_of(model)
            config = agreeing(load_config(name, described=described, quantized=quantized, **further), name, revision)
            return cls(name=name, config=config, checkpoint=name, given_tokenizer=tokenizer, **further)
        config = copy.deepcopy(model.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # it describes how this model was loaded, and not what it is
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
        """What a name stands for that may also be an adapter's, a quantized model's, or one of an unknown family.

        Args:
            name: a checkpoint's folder or hub name, or those of an adapter.
            base: of an adapter, in place of the one that it names.
            tokenizer: checkpoint to take the tokenizer from; None is the model's own, or that of an adapter's base.
            trust_remote_code: run code that the checkpoint brings.
            revision: of a hub name.

        Raises:
            CheckpointError: there is no such checkpoint, or an adapter's base is missing or an adapter itself.
        """
        name = _checkpoint_of(name)
        adapter = find_adapter(name, base=base, revision=revision)
        if adapter is None:
            if base is not None:
                raise CheckpointError(f"--base names the base of an adapter, and {name} is none. Leave it out.")
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
        """The revision of that checkpoint."""
        return self.revision if self.adapter is None else self.adapter.base_revision

    @property
    def folder(self) -> Path | None:
        """The folder that holds the whole model's files: also that of a hub checkpoint which was fetched; or None."""
        if self.loaded is not None or self.checkpoint is None:
            return None
        return local_folder(self.checkpoint, self.checkpoint_revision)

    @cached_property
    def auto_class(self) -> str:
        """The class of transformers that loads such a model.

        Raises:
            ValueError: none does.
        """
        above = () if self.loaded is None else type(self.loaded).__mro__
        found = (loading_class(each.__name__) for each in above)
        return next((name for name in found if name), None) or auto_class_of(self.config)

    @cached_property
    def shapes(self) -> PreTrainedModel:
        """The model without its weights, on the meta device; one that is in memory is itself."""
        if self.loaded is not None:
            return self.loaded
        auto_class, config = self.auto_class, copy.deepcopy(self.config)
        what, remedy = f"No model can be made of the config of {self.name}", "Correct its config.json."
        with reading(what, remedy, self.config.to_dict()):
            return meta_model(config, auto_class)

    @cached_property
    def context(self) -> int | None:
        """Tokens that the model can read at most; None where its positions have no end."""
        try:
            shapes: nn.Module = self.shapes
        except ValueError:  # a family of unknown making: its config has to do
            shapes = nn.Identity()
        return context_of(self.config, shapes)

    @property
    def recomputes(self) -> bool:
        """Whether the model can drop activations and compute them again."""
        return bool(self.shapes.supports_gradient_checkpointing)

    @property
    def vocabulary(self) -> int | None:
        """Tokens that the model has embeddings for."""
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
        """Make sure that the files of a folder's weights are there and whole, by their headers.

        Raises:
            CheckpointError: they are not.
        """
        if self.loaded is None and self.checkpoint is not None and not self.packed:
            check_weight_files(self.checkpoint)

    def check_trainable(self) -> None:
        """Make sure that the weights are there, and of a kind that can be changed.

        Raises:
            CheckpointError: they are missing, broken or packed.
        """
        self.check_weights()
        if self.packed:
            raise CheckpointError(
                f"{self.name} holds packed 2:4 weights, which can be run and not changed. Name the checkpoint that it "
                "was exported from."
            )

    @property
    def device(self) -> torch.device:
        """The device of a model in memory; else the first accelerator, or the CPU."""
        return default_device() if self.loaded is None else next(self.loaded.parameters()).device

    @cached_property
    def stored_dtype(self) -> torch.dtype:
        """The dtype that the weights are stored in: as their files say; where these are not here, as the config says.

        A quantized checkpoint's files hold numbers of several kinds, so that its config alone counts.
        """
        if self.loaded is not None:
            return self.loaded.dtype
        folder = None if self.quantized else self.folder
        return (dtype_in_files(folder) if folder is not None else None) or checkpoint_dtype(self.config)

    def working_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype to work in on a device: that of a model in memory, or as :func:`working_dtype` has it."""
        return working_dtype(self.stored_dtype, device) if self.loaded is None else self.stored_dtype

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that was given, or that of the checkpoint named for it, or an adapter's own, or the model's.

        Raises:
            CheckpointError: there is none.
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
            raise ValueError(
                "The model that was passed in names no checkpoint to load a tokenizer from: pass tokenizer=."
            )
        return load_tokenizer(
            self.checkpoint, trust_remote_code=self.trust_remote_code, revision=self.checkpoint_revision
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files: of model, adapter, and a tokenizer from elsewhere; of hub names, the commits."""
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
        """The model with its weights, in evaluation mode, whichever way it was saved; one in memory as it is.

        Args:
            dtype: of weights that are not quantized. Packed 2:4 weights keep theirs on an accelerator.
            device: to load onto.
            quantization: one of :data:`~loraprune.checkpoint.load.QUANTIZATIONS`, or None.
            merge: merge an adapter into its base; otherwise the model is peft's around it.
            sharded: share the weights out among the processes of the run (FSDP2).

        Raises:
            CheckpointError: weights are missing or broken, or an adapter does not fit its base.
            RuntimeFormatError: packed 2:4 weights are of another version, or the device does not multiply them.
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
            # Merging brings what was quantized to the memory of the CPU.
            model = model.to(device) if merge else model
        loaded: PreTrainedModel = model.eval()
        return loaded


def _checkpoint_of(name: str | Path) -> str:
    """What a model's name stands for.

    Raises:
        ValueError: it is a preset, which has no weights.
    """
    check_no_preset(name)
    return expanded(name)


def _identity(name: str, revision: str | None) -> str:
    path = Path(name).expanduser()
    return fingerprints.folder_fingerprint(path) if path.is_dir() else fingerprints.hub_fingerprint(name, revision)


def _base_config(name: str, adapter: AdapterFolder, trust_remote_code: bool) -> PretrainedConfig:
    """The config of an adapter's base.

    Raises:
        CheckpointError: the base is missing, or an adapter itself.
    """
    if find_adapter(adapter.base) is not None:
        raise CheckpointError(
            f"{name} is an adapter on another adapter, {adapter.base}. Merge that one into its base first."
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
            f"{name} is an adapter, and its base {adapter.base} cannot be read: {error} If the base is elsewhere, name "
            "it with --base."
        ) from error
