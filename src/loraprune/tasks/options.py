"""Options of a run besides pruning and training: the adapter, the model's source, the result's destination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.data.encoding import BOS_CHOICES
from loraprune.data.renaming import renames
from loraprune.options.field import check_fields, setting
from loraprune.options.precision import DTYPE_NAMES, check_quantization
from loraprune.options.sizes import byte_count, share_or_bytes
from loraprune.record.places import check_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.checkpoint.publish import HubTarget
    from loraprune.data.named import Data


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """LoRA on all layers that belong to groups.

    Attributes:
        r: rank; None is the power of two nearest below a quarter of the hidden size, from 8 to 64.
        alpha: ``B·A`` is scaled by ``alpha / r``.
        dropout: dropout on the adapter's input. Above 0, it stores one more tensor for each consumer while the
            criterion ``fisher`` collects evidence.
        target_modules: names, or endings of names, of the layers to adapt; None adapts every linear layer that belongs
            to a group, whether or not groups of its kind are pruned.
        experts: also adapt the stacked weights of experts that belong to groups (peft's ``target_parameters``).

    Raises:
        ValueError: a value is out of its range.
    """

    r: int | None = setting(
        None,
        "rank of the adapter",
        within="[1, inf)",
        flat="lora_r",
        shown="a quarter of the hidden size, from 8 to 64",
    )
    alpha: int = setting(
        16, "LoRA alpha: the update is scaled by alpha / rank", within="[1, 1000000]", flat="lora_alpha"
    )
    dropout: float = setting(0.0, "dropout on the input of the adapter", within="[0, 1)", flat="lora_dropout")
    target_modules: Sequence[str] | None = setting(
        None,
        "layers to adapt, such as q_proj v_proj",
        flat="lora_target_modules",
        shown="all projections of the blocks",
    )
    experts: bool = setting(False, "also adapt the stacked experts of a mixture", flat="lora_experts")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.experts and self.dropout > 0.0:
            raise ValueError("Stacked experts cannot be adapted with dropout. Set the dropout of LoRA to 0.")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a whole run.

    Attributes:
        output: folder of the finished checkpoint; None keeps the result in memory only.
        overwrite: replace an output folder that is not empty, and discard an interrupted run.
        dry_run: check everything, show what the run would do, and stop with ``DryRunError``; nothing is written.
        resume: continue the interrupted run of this output folder.
        allow_changes: when resuming, accept data and training arguments that differ from those of the interrupted run.
        allow_bad_result: write the result even if cuts are missing or it is no better than chance.
        keep_run: keep the run's folder (its checkpoints) after the end.
        save_adapter: also save the unmerged adapter and the plan.
        answers_only: train only on the answers of instructions and chats.
        bos: texts that start with the beginning-of-sequence token, for causal language models. ``auto``: each text, if
            the tokenizer adds the token itself; ``always``: each row and each block of packed text; ``never``: none. A
            chat template adds its own token.
        eval_data: data to measure on, in any form of the training data; None holds out some of the training data.
        eval_sequences: maximum number of rows to measure on; 0 measures nothing, and None is 64 for models that write
            text and 1000 for classifiers.
        eval_steps: training steps between evaluations on the held-out rows; None evaluates before and after training
            only.
        early_stopping_patience: number of evaluations without improvement after which training stops; evaluations
            before the last cut do not count. None never stops early.
        load_best: keep the adapter of the evaluation after the last cut that had the lowest loss.
        split: split of the training data (of a Hub dataset, a saved dataset or a folder).
        eval_split: split of ``eval_data``, likewise.
        data_name: configuration of Hub datasets that are named without one.
        columns: new names for columns, ``"prompt=question,completion=answer"`` or a mapping: the name in the format,
            then the name in the data.
        streaming: read only as many rows as the run uses, one after the other.
        stopping_strategy: end of a mixture by weight: ``first_exhausted`` ends it when the first source runs out,
            ``all_exhausted`` when the last one does, and repeats the rows of the others until then.
        target_params: target number of parameters of the whole model, instead of a ratio.
        target_size: target size of the result's weights in bytes, or as text such as ``"500MB"``, instead of a ratio.
        target_kv_cache: target size of the KV cache: a share of the dense model's cache, below 1, or the bytes of one
            sequence as long as the context (``"64MB"``). Alone, it removes only KV heads; with another target, it
            limits the heads.
        speedup: target speedup over the dense model on this machine, instead of a ratio; blocks of several widths are
            timed before the run.
        speedup_phase: phase to time: ``prefill``, a forward pass over a prompt, or ``decode``, token by token.
        speedup_tokens: tokens of the prompt; None is 2048, or the model's context if that is shorter.
        speedup_batch: sequences per batch.
        quantization: quantization of the base while it is tuned and pruned: ``bnb-8bit`` (LLM.int8), ``bnb-4bit`` (NF4
            with double quantization) or ``torchao-int8`` (weights only); None leaves it in 16 or 32 bits.
        keep_quantized: save the result quantized like the base, instead of in the checkpoint's own dtype.
        dtype: dtype of the saved result: ``float32``, ``bfloat16`` or ``float16``; None is the checkpoint's own.
        verify: load the saved result with plain transformers and compare its outputs with those of the model in memory,
            before the result replaces the output folder. This is skipped if memory does not hold two models or the
            result is quantized.
        latency: measure the latency of a forward pass, dense and pruned.
        unrecovered: also measure the original model with the same groups cut out and nothing else done.
        report: write report.html and report.json beside the checkpoint.
        prompt: text that the dense and the pruned model continue, for the report.
        fsdp: 2 shards the weights of the base over the processes of the run (PyTorch's FSDP2), so each GPU holds a part
            of them; None: each process holds the whole model (DDP).
        distill: share of the loss after the last cut that is the divergence from the dense model (the rest is the usual
            cross-entropy), in [0, 1]; for causal language models. The dense model stays in memory.
        teacher: the dense model, if it is neither the model of the run nor the one that its record names.
        push_to_hub: name of the Hub repository that the finished folder is pushed to; the login is checked before the
            run.
        private: whether a newly created repository is private; None is the account's default.
        hub_revision: branch to push to; None is the main branch.
        trust_remote_code: run code that comes with a checkpoint.
        revision: revision of a Hub checkpoint.
        command: command line of the user, for the record.
    """

    output: Path | None = setting(None, "folder for the result")
    split: str = setting("train", "split of --data if it is a Hub dataset or a folder")
    eval_split: str = setting("validation", "split of --eval-data if it is a Hub dataset or a folder")
    data_name: str | None = setting(None, "configuration of Hub datasets named without one")
    eval_data: Data | None = setting(
        None, "data to measure the model on, in the forms of --data", shown="5 % of --data, held out"
    )
    columns: str | None = setting(None, "new names for columns of the data: prompt=question,completion=answer")
    streaming: bool = setting(False, "read only as many rows as --max-steps uses, for data too large to read whole")
    stopping_strategy: str = setting(
        "first_exhausted",
        "when a mixture by weight ends: when the first source runs out, or the last, with the rows of the others "
        "repeated until then",
        choices=("first_exhausted", "all_exhausted"),
    )
    eval_sequences: int | None = setting(
        None,
        "maximum number of rows to measure on; 0 measures nothing",
        within="[0, inf)",
        shown="64; 1000 for classifiers",
    )
    answers_only: bool = setting(True, "train only on the answers of instructions and chats")
    bos: str = setting(
        "auto",
        "where to put the beginning-of-sequence token: auto follows the tokenizer, always means every row and block",
        choices=BOS_CHOICES,
    )
    overwrite: bool = setting(False, "replace an earlier result in the output folder, and discard an interrupted run")
    allow_bad_result: bool = setting(False, "write the result even if cuts are missing or it is no better than chance")
    eval_steps: int | None = setting(
        None, "evaluate on the held-out rows every N steps of training", within="[1, inf)", shown="off"
    )
    early_stopping_patience: int | None = setting(
        None,
        "stop after N evaluations without improvement, counted from the last cut",
        within="[1, inf)",
        shown="off",
    )
    load_best: bool = setting(False, "keep the adapter of the best evaluation after the last cut, not the last adapter")
    dry_run: bool = setting(False, "check everything, show what the run would do, and stop")
    resume: bool = setting(False, "continue the interrupted run of this output folder")
    allow_changes: bool = setting(
        False, "with --resume, accept data and training options that differ from those of the first start"
    )
    trust_remote_code: bool = setting(False, "run Python code that comes with the checkpoint")
    revision: str | None = setting(None, "branch, tag or commit of a Hub checkpoint")
    target_params: int | None = setting(None, "number of parameters of the result, such as 4.5B", within="[1, inf)")
    target_size: int | str | None = setting(None, "size of the result's weights on disk, such as 500MB")
    target_kv_cache: float | str | None = setting(
        None,
        "size of the KV cache: a share of the dense model's, such as 0.5, or a size for one full context, such as 64MB",
    )
    speedup: float | None = setting(
        None,
        "speed-up over the dense model on this machine, such as 1.5",
        within="(1, 1000]",
        why="a speed-up says how many times as fast the result is",
    )
    speedup_phase: str = setting(
        "prefill",
        "what --speedup times: a pass over a prompt, or decoding token by token",
        choices=("prefill", "decode"),
    )
    speedup_tokens: int | None = setting(
        None, "tokens in the prompt that --speedup times", within="[1, inf)", shown="2048, or the model's context"
    )
    speedup_batch: int = setting(1, "sequences in the batch that --speedup times", within="[1, 1000000]")
    quantization: str | None = setting(
        None, "quantization of the base model: bnb-8bit, bnb-4bit or torchao-int8", shown="none"
    )
    keep_quantized: bool = setting(False, "save the result quantized instead of in the checkpoint's data type")
    dtype: str | None = setting(
        None,
        "data type of the saved result",
        choices=DTYPE_NAMES,
        shown="the checkpoint's",
    )
    verify: bool = setting(True, "load the saved result and compare its outputs with the model in memory")
    latency: bool = setting(True, "measure the latency of the dense and the pruned model")
    unrecovered: bool = setting(False, "also measure the pruned model without tuning", flat="measure_unrecovered")
    fsdp: int | None = setting(
        None,
        "shard the base model's weights across the processes; 2 stands for PyTorch's FSDP2",
        within="[2, 2]",
        why="2 is the version of PyTorch's FSDP",
        shown="each process holds all weights",
    )
    distill: float | None = setting(
        None,
        "share of the loss that follows the dense model after the last cut, from 0 to 1",
        within="[0, 1]",
        shown="0",
    )
    teacher: str | Path | None = setting(
        None,
        "dense model to follow",
        shown="MODEL before the first cut; in recover, the model that MODEL was pruned from",
    )
    prompt: str | None = setting(None, "text that the dense and the pruned model complete in the report")
    report: bool = setting(True, "write report.html and report.json")
    push_to_hub: str | None = setting(
        None, "push the result to this name on the Hub; the login is checked at the start"
    )
    private: bool | None = setting(
        None, "make the repository on the Hub private", shown="as the account's settings say"
    )
    hub_revision: str | None = setting(None, "branch on the Hub to push to", shown="main")
    save_adapter: bool = setting(False, "also save the unmerged adapter and the pruning plan")
    keep_run: bool = setting(False, "keep the saved states of the run after its end")
    command: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.columns, Mapping):
            pairs = ",".join(f"{ours}={theirs}" for ours, theirs in self.columns.items())
            object.__setattr__(self, "columns", pairs)
        check_fields(self)
        renames(self.columns)
        self._read_sizes()
        if self.output is not None:
            object.__setattr__(self, "output", Path(self.output).expanduser())
            check_kind(self.output)
        check_quantization(self.quantization)
        for name in ("early_stopping_patience", "load_best"):
            if getattr(self, name) and self.eval_steps is None:
                raise ValueError(f"{name} compares evaluations during training, and there are none. Add --eval-steps.")
        if self.allow_changes and not self.resume:
            raise ValueError("allow_changes applies to a resumed run. Add --resume, or leave it out.")
        self._check_push()
        if self.output is None and self.resume:
            raise ValueError("A run without an output folder cannot be resumed. Name its output folder.")
        if self.output is not None and Path.cwd().is_relative_to(self.output.resolve()):
            raise ValueError(f"The output {self.output} is the folder that you are in, or above it. Name a new folder.")

    def _check_push(self) -> None:
        """Check that there is something to push, and that the Hub accepts the name."""
        if self.push_to_hub is None and (self.private is not None or self.hub_revision is not None):
            raise ValueError("private and hub_revision apply to a push. Add --push-to-hub NAME, or leave them out.")
        if self.push_to_hub is not None and self.output is None:
            raise ValueError("A run without an output folder cannot be pushed. Name one, or leave push_to_hub out.")
        self.hub_target()

    def _read_sizes(self) -> None:
        """Convert sizes given as text to numbers."""
        if self.target_size is not None:
            object.__setattr__(self, "target_size", byte_count("target_size", self.target_size))
        if self.target_kv_cache is not None:
            value = share_or_bytes("target_kv_cache", self.target_kv_cache)
            object.__setattr__(self, "target_kv_cache", value)

    @property
    def sharded(self) -> bool:
        """Whether the processes shard the weights of the base."""
        return self.fsdp is not None

    def hub_target(self) -> HubTarget | None:
        """Repository that the result is pushed to, or None.

        Raises:
            ValueError: the Hub does not accept the name.
        """
        if self.push_to_hub is None:
            return None
        from loraprune.checkpoint.publish import HubTarget

        return HubTarget(name=self.push_to_hub, private=self.private, revision=self.hub_revision)

    @property
    def run_dir(self) -> Path | None:
        """Folder of the run's own checkpoints, beside the output."""
        if self.output is None:
            return None
        output = self.output.resolve() if self.output.is_symlink() else self.output
        return output.with_name(f"{output.name}.run")
