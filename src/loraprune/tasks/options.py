"""Everything about a run that is neither pruning, LoRA nor training: where it comes from and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.checkpoint.load import DTYPES, check_quantization
from loraprune.record.places import check_kind

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a whole run.

    Attributes:
        output: folder of the finished checkpoint; None keeps the result in memory only.
        overwrite: replace an output folder that holds something, and forget an interrupted run.
        resume: go on with the interrupted run of this output folder.
        keep_run: keep the run's folder (its checkpoints) after the end.
        save_adapter: also save the unmerged adapter and the plan.
        answers_only: of instructions and chats, train on the answers alone.
        eval_data: data to measure on: a file, a folder, a hub data set's name, or a loaded data set; None holds out
            some of the training data.
        eval_sequences: rows to measure on, at most; 0 measures nothing, and None is 64 for models that write text and
            1000 for classifiers.
        split: split of the training data (of a hub data set or a folder).
        eval_split: split of ``eval_data``, likewise.
        data_name: configuration of a hub data set.
        target_params: wanted parameters of the whole model, instead of a ratio.
        quantization: of the base while it is tuned and pruned: ``bnb-8bit`` (LLM.int8), ``bnb-4bit`` (NF4 with double
            quantization) or ``torchao-int8`` (weights only); None leaves it in 16 or 32 bits.
        keep_quantized: save the result quantized like the base, instead of in the checkpoint's own dtype.
        dtype: that the result is saved in: ``float32``, ``bfloat16`` or ``float16``; None is the checkpoint's own.
        latency: measure the latency of a forward pass, dense and pruned.
        unrecovered: also measure the original model with the same groups cut out and nothing else done.
        report: write report.html and report.json beside the checkpoint.
        prompt: text that dense and pruned model go on from, for the report.
        trust_remote_code: run code that a checkpoint brings.
        revision: of a hub checkpoint.
        command: what the user typed, for the record.
    """

    output: Path | None = None
    overwrite: bool = False
    resume: bool = False
    keep_run: bool = False
    save_adapter: bool = False
    answers_only: bool = True
    eval_data: str | Path | Dataset | None = None
    eval_sequences: int | None = None
    split: str = "train"
    eval_split: str = "validation"
    data_name: str | None = None
    target_params: int | None = None
    quantization: str | None = None
    keep_quantized: bool = False
    dtype: str | None = None
    latency: bool = True
    unrecovered: bool = False
    report: bool = True
    prompt: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        if self.output is not None:
            object.__setattr__(self, "output", Path(self.output).expanduser())
            check_kind(self.output)
        check_quantization(self.quantization)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}.")
        if self.eval_sequences is not None and self.eval_sequences < 0:
            raise ValueError(f"eval_sequences is {self.eval_sequences}; it cannot be negative.")
        if self.output is None and self.resume:
            raise ValueError("A run without an output folder leaves nothing to resume from.")
        if self.output is not None and Path.cwd().is_relative_to(self.output.resolve()):
            raise ValueError(f"The output {self.output} is the folder that you are in, or above it. Name a new folder.")

    @property
    def run_dir(self) -> Path | None:
        """Folder of the run's own checkpoints, beside the output."""
        if self.output is None:
            return None
        output = self.output.resolve() if self.output.is_symlink() else self.output
        return output.with_name(f"{output.name}.run")
