"""The options that all commands that train share, declared once; ``target`` says what each one sets."""

from __future__ import annotations

from pathlib import Path

from loraprune.cli.options import SWITCH, Option, option


def sources(result: str) -> tuple[Option, ...]:
    """What goes in and where it goes.

    Args:
        result: what the output folder holds, for the help text: ``"pruned checkpoint"``.
    """
    return (
        option("data", "call", "training data: a .jsonl, .json, .csv, .parquet or .txt file, a folder of such files "
               "or of images by class, or a hub data set"),
        option("output", "run", f"folder of the {result}", type=Path),
        option("tokenizer", "call", "checkpoint to take the tokenizer from (default: MODEL)"),
        option("image_processor", "call", "checkpoint to take the image processor from (default: MODEL)"),
        option("split", "run", "split of a hub data set (train)"),
        option("eval_split", "run", "split of a hub data set given as --eval-data (validation)"),
        option("data_name", "run", "configuration of a hub data set"),
        option("eval_data", "run", "data to measure on (default: a twentieth of the training data)"),
        option("eval_sequences", "run", "rows to measure on, 0 for none (64; 1000 for classifiers)", type=int),
        option("answers_only", "run", "of instructions and chats, train on the answers alone (on)", **SWITCH),
        option("overwrite", "run", "replace what the output folder holds, and forget an interrupted run", **SWITCH),
        option("resume", "run", "go on with the interrupted run of this output folder", **SWITCH),
        option("trust_remote_code", "run", "run code that the checkpoint brings (off)", **SWITCH),
        option("revision", "run", "branch, tag or commit of a hub checkpoint"),
    )  # fmt: skip


LORA: tuple[Option, ...] = (
    option("lora_r", "lora", "rank (8)", field="r", type=int),
    option("lora_alpha", "lora", "alpha (16)", field="alpha", type=int),
    option("lora_dropout", "lora", "dropout (0)", field="dropout", type=float),
    option("lora_target_modules", "lora", "layers to adapt (all projections of the blocks)",
           field="target_modules", nargs="+"),
    option("lora_experts", "lora", "adapt the stacked experts of a mixture too (off)", field="experts", **SWITCH),
)  # fmt: skip

ARCHITECTURE = option("architecture", "call", "YAML description of a family that loraprune does not know", type=Path)


def max_skipped_steps(target: str) -> Option:
    """When a run stops that diverges."""
    return option("max_skipped_steps", target, "steps in a row with NaN or Inf before the run stops (5)", type=int)


def kept(adapter: str) -> tuple[Option, ...]:
    """What is kept of a run.

    Args:
        adapter: what ``--save-adapter`` saves.
    """
    return (
        option("prompt", "run", "text that both models go on from, for the report"),
        option("report", "run", "write report.html and report.json (on)", **SWITCH),
        option("save_adapter", "run", f"also save {adapter} (off)", **SWITCH),
        option("keep_run", "run", "keep the run's checkpoints after the end (off)", **SWITCH),
        option("quiet", "call", "results only", **SWITCH),
    )


TRAINING_HELP = """training options, as trl's SFTConfig names them (nearly all of its fields can be given):
  --max-steps, --num-train-epochs (2), --per-device-train-batch-size (8), --gradient-accumulation-steps (1),
  --learning-rate (1e-4), --lr-scheduler-type (cosine), --warmup-steps, --weight-decay, --max-grad-norm,
  --max-length (1024, or the model's context), --seed (42), --bf16, --gradient-checkpointing,
  --logging-steps (5), --save-steps (100), --report-to (none), ...
"""

_ANEW = "It does not go together with a model whose layers this command changes."
REMEDIES = {
    "output_dir": "Say -o/--output.",
    "resume_from_checkpoint": "Say --resume.",
    "packing": "Plain text is packed and everything else is not.",
    "assistant_only_loss": "Say --answers-only or --no-answers-only.",
    "completion_only_loss": "Say --answers-only or --no-answers-only.",
    "eval_strategy": "Perplexity is measured before and after training, on --eval-data.",
    "dataset_text_field": "Text is read from the column 'text'.",
    "model_init_kwargs": "The model is loaded in its own dtype.",
    "chat_template_path": "The tokenizer's own chat template is used; name another tokenizer with --tokenizer.",
    "eos_token": "The tokenizer's own is used; name another tokenizer with --tokenizer.",
    "save_only_model": "A run could not be resumed.",
    "padding_free": "Sequences are told apart by padding; plain text is packed.",
    "auto_find_batch_size": _ANEW,
    "load_best_model_at_end": _ANEW,
    "torch_compile": _ANEW,
    "fsdp": _ANEW,
    "deepspeed": _ANEW,
}
"""Training options that these commands do not take, and what to say instead."""
