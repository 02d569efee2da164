"""What ``loraprune bench`` measures, how often, and on which device."""

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
"""Criteria of a training step; ``position`` looks at nothing."""
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
        tokens: tokens of a sequence: 2048 for inference, 512 for training, or the context of the model if that is
            shorter.
        batch_size: sequences of a forward pass, in prefill and in training.
        decode_batch: sequences that are decoded at once; one measurement each. Empty leaves decoding out.
        new_tokens: tokens that a timed run decodes for each sequence.
        repeats: timed passes, runs or steps of each model: 100 for inference, 20 for training.
        warmup: passes, runs or steps of each model before them: 10 for inference, 2 for training.
        threads: of the CPU; None leaves torch's own number.
        device: such as ``cpu`` or ``cuda:0``; None is the first accelerator, or the CPU.
        dtype: that models compute in; None is the first one's own, on a CPU 32 bits.
        attn_implementation: attention of all models; None leaves each one's own.
        against_base: put the dense shapes that a pruned model was made from first, with random weights.
        one_at_a_time: load one model after the other; they then take no turns.
        base: of an adapter, or of ``against_base``, in place of the one that the folder names.
        seed: of random input and random weights.
        criteria: that are timed, all of :data:`TIMED_CRITERIA` for None.
        ratio: sparsity ratio of masks and slices.
        accumulation: forward and backward passes in a step.
        bf16: train under bf16 autocast; None is on where an accelerator has it, as in ``loraprune prune``.
        gradient_checkpointing: compute activations again; None is on on an accelerator, as in ``loraprune prune``.
        quantization: of the base that is trained: ``bnb-8bit``, ``bnb-4bit`` or ``torchao-int8``.
        lora_r: rank of the adapter.
        offload_grads: of ``taylor``: keep gradients in the machine's memory.
        trust_remote_code: run code that a checkpoint brings.
        revision: of a hub checkpoint.
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
        """Refuse options of the other profile rather than ignore them.

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
        """Timed calls of each contender."""
        return REPEATS[self.profile] if self.repeats is None else self.repeats

    @property
    def warm(self) -> int:
        """Calls before them."""
        return WARMUP[self.profile] if self.warmup is None else self.warmup

    def tokens_for(self, contexts: Sequence[int | None]) -> int:
        """Tokens of a sequence, for models of these contexts.

        Raises:
            ValueError: a length was asked for that one of them cannot read.
        """
        shortest = min((context for context in contexts if context is not None), default=None)
        if self.tokens is None:
            return TOKENS[self.profile] if shortest is None else min(TOKENS[self.profile], shortest)
        if shortest is not None and self.tokens > shortest:
            raise ValueError(f"tokens is {self.tokens}, and the models read {shortest} at most. Ask for fewer.")
        return self.tokens

    def prompt_for(self, tokens: int, contexts: Sequence[int | None]) -> int:
        """Tokens of the prompt before decoding: those of the prefill, as far as the new ones leave room for them.

        Raises:
            ValueError: they leave none.
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
