"""Configuration of ``loraprune bench``: what to measure, how often, and on which device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from loraprune.importance.configs import CRITERIA
from loraprune.options.field import SEEDS, check_choice, check_fields, check_within, setting
from loraprune.options.precision import DTYPE_NAMES, check_quantization

PROFILES = ("inference", "training")
REPEATS = {"inference": 100, "training": 20}
WARMUP = {"inference": 10, "training": 2}
TOKENS = {"inference": 2048, "training": 512}
TIMED_CRITERIA = tuple(name for name in CRITERIA if name != "position")
"""Criteria of a training step; ``position`` uses no data."""
OF_INFERENCE = ("decode_batch", "new_tokens", "against_base", "base")
OF_TRAINING = (
    "criteria",
    "ratio",
    "accumulation",
    "bf16",
    "gradient_checkpointing",
    "quantization",
    "lora_r",
    "offload_grads",
)
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Configuration of a benchmark. None takes a default that depends on the profile or on the models.

    Attributes:
        profile: ``inference`` (prefill and decoding) or ``training`` (a step of plain LoRA tuning, of each criterion,
            with masks and with slices).
        tokens: tokens per sequence: 2048 for inference, 512 for training, or the context of the model if that is
            shorter.
        batch_size: sequences per forward pass, in prefill and in training.
        decode_batch: batch sizes for decoding; one measurement each. Empty skips decoding.
        new_tokens: tokens decoded for each sequence in a timed run.
        repeats: timed passes, runs or steps of each model: 100 for inference, 20 for training.
        warmup: untimed passes, runs or steps of each model before them: 10 for inference, 2 for training.
        threads: CPU threads; None leaves torch's own number.
        device: such as ``cpu`` or ``cuda:0``; None is the first accelerator, or the CPU.
        dtype: dtype that models compute in; None is the first model's own, 32 bits on a CPU.
        attn_implementation: attention of all models; None leaves each one's own.
        against_base: add the dense shapes of a pruned model's base, with random weights, as the first model.
        one_at_a_time: load one model after the other; they are then not measured in turns.
        base: base of an adapter, or for ``against_base``, in place of the one that the folder names.
        seed: seed of random input and random weights.
        criteria: criteria to time; None is all of :data:`TIMED_CRITERIA`.
        ratio: sparsity ratio of masks and slices.
        accumulation: forward and backward passes per step.
        bf16: train under bf16 autocast; None turns it on if the accelerator supports it, as in ``loraprune prune``.
        gradient_checkpointing: recompute activations; None turns it on on an accelerator, as in ``loraprune prune``.
        quantization: quantization of the base in training: ``bnb-8bit``, ``bnb-4bit`` or ``torchao-int8``.
        lora_r: rank of the adapter.
        offload_grads: for ``taylor``: keep gradients in CPU memory.
        trust_remote_code: run code that comes with a checkpoint.
        revision: revision of a Hub checkpoint.
    """

    profile: str = "inference"
    tokens: int | None = setting(None, within="[1, inf)")
    batch_size: int = setting(1, within="[1, inf)")
    decode_batch: Sequence[int] = (1, 8)
    new_tokens: int = setting(16, within="[1, inf)")
    repeats: int | None = setting(None, within="[1, 1000000]")
    warmup: int | None = setting(None, within="[0, 1000000]")
    threads: int | None = setting(None, within="[1, 4096]")
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    against_base: bool = False
    one_at_a_time: bool = False
    base: str | None = None
    seed: int = setting(42, within=SEEDS)
    criteria: Sequence[str] | None = None
    ratio: float = setting(0.5, within="(0, 1)", why="the share of prunable weights")
    accumulation: int = setting(1, within="[1, 1000000]")
    bf16: bool | None = None
    gradient_checkpointing: bool | None = None
    quantization: str | None = None
    lora_r: int = setting(8, within="[1, inf)")
    offload_grads: bool = False
    trust_remote_code: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        _one_of("profile", self.profile, PROFILES)
        _one_of("dtype", self.dtype, DTYPE_NAMES)
        _one_of("attn_implementation", self.attn_implementation, _ATTENTION)
        check_fields(self)
        object.__setattr__(self, "decode_batch", tuple(dict.fromkeys(self.decode_batch)))
        for size in self.decode_batch:
            check_within("decode_batch", size, "[1, 65536]", "sequences that are decoded at once")
        if self.criteria is not None:
            object.__setattr__(self, "criteria", tuple(self.criteria))
            for criterion in self.criteria:
                _one_of("criterion", criterion, TIMED_CRITERIA)
        check_quantization(self.quantization)
        self._check_profile()

    def _check_profile(self) -> None:
        """Reject options of the other profile instead of ignoring them.

        Raises:
            ValueError: one was given.
        """
        foreign = OF_TRAINING if self.profile == "inference" else OF_INFERENCE
        other = "training" if self.profile == "inference" else "inference"
        for field in fields(self):
            if field.name in foreign and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} is an option of the profile {other!r}, and this one is {self.profile!r}. Leave it "
                    "out, or choose the other profile."
                )

    @property
    def count(self) -> int:
        """Number of timed calls of each contender."""
        return REPEATS[self.profile] if self.repeats is None else self.repeats

    @property
    def warm(self) -> int:
        """Number of calls before the timed ones."""
        return WARMUP[self.profile] if self.warmup is None else self.warmup

    def tokens_for(self, contexts: Sequence[int | None]) -> int:
        """Tokens per sequence, for models with these contexts.

        Raises:
            ValueError: the requested length exceeds the context of a model.
        """
        shortest = min((context for context in contexts if context is not None), default=None)
        if self.tokens is None:
            return TOKENS[self.profile] if shortest is None else min(TOKENS[self.profile], shortest)
        if shortest is not None and self.tokens > shortest:
            raise ValueError(f"tokens is {self.tokens}, and the models read {shortest} at most. Ask for fewer.")
        return self.tokens

    def prompt_for(self, tokens: int, contexts: Sequence[int | None]) -> int:
        """Tokens of the prompt before decoding: those of the prefill, reduced if necessary to leave room for new ones.

        Raises:
            ValueError: there is no room for a prompt.
        """
        shortest = min((context for context in contexts if context is not None), default=tokens + self.new_tokens)
        room = min(tokens, shortest - self.new_tokens)
        if room < 1:
            raise ValueError(
                f"new_tokens is {self.new_tokens}, and the models read {shortest} tokens at most: there is no room for "
                "a prompt. Ask for fewer new tokens."
            )
        return room


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value is not None:
        check_choice(name, value, choices)
