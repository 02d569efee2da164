"""Train the bundled demo model: a small Llama with grouped-query attention, on the text that CPython carries.

    python scripts/train_demo_model.py --work-dir build/demo-model

About an hour on two cores in bf16 with ``torch.compile``, minutes on a GPU. Started again with the same
``--work-dir``, it goes on from the last saved state. The finished model, its tokenizer and its card are written
to ``src/loraprune/data/demo-llama``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from loraprune.data.demo import HELD_OUT_MODULES, standard_library_text
from loraprune.metrics.perplexity import HeldOut, pack_text, perplexity

BUNDLED = Path(__file__).resolve().parents[1] / "src/loraprune/data/demo-llama"
VOCABULARY = 4096
CONTEXT = 512
END = "<|endoftext|>"
PAD = "<|pad|>"
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE that keeps a newline and the indentation after it together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n[ ]*| ?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The shape of the demo model: 8 query heads on 4 KV heads, 5.5 million parameters."""
    return LlamaConfig(
        **CONFIG,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class StopAfter(TrainerCallback):
    """Leave the run after some steps of this process, with its state saved: for tests of resuming."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.done += 1
        if self.done >= self.steps:
            control.should_save = control.should_training_stop = True
        return control


def train(model: LlamaForCausalLM, text: HeldOut, work_dir: Path, options: argparse.Namespace) -> bool:
    """Train from scratch, or on from the last saved state. True when the last step was reached."""
    rows = [ids.tolist() for ids, _ in text.sequences]
    arguments = TrainingArguments(
        output_dir=str(work_dir / "state"),
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=max(options.max_steps // 25, 1),
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=True,
        torch_compile=not options.no_compile,
        logging_steps=50,
        save_steps=options.save_steps,
        save_total_limit=2,
        seed=options.seed,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_drop_last=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        callbacks=[StopAfter(options.stop_after)] if options.stop_after else [],
    )
    state_dir = work_dir / "state"
    last = get_last_checkpoint(str(state_dir)) if state_dir.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return trainer.state.global_step >= options.max_steps


CARD = """---
license: apache-2.0
language: [en, code]
library_name: transformers
---
# The demo model of loraprune

A Llama of {parameters:,} parameters: {hidden_size} wide, {num_hidden_layers} layers, {num_attention_heads} heads on
{num_key_value_heads} KV heads, FFN {intermediate_size}, vocabulary {vocab_size}, context {max_position_embeddings}.
It exists so that `loraprune demo` can prune something real without a download. It continues Python sources and their
documentation; it is of no other use.

## How it was made
`python scripts/train_demo_model.py`: {steps} steps of {batch_size} × {max_position_embeddings} tokens, learning rate
{learning_rate}, cosine, AdamW, bf16, seed {seed}, on the standard library of CPython {python} (sources and language
reference; its tests, generated tables and site packages left out). The byte-level BPE tokenizer was learnt from the
same text.

## How good it is
On whole modules that it never saw ({held_out}), in segments of {max_position_embeddings} tokens:

| | perplexity per token | bits per byte |
|---|---|---|
| this model | {trained_perplexity:.2f} | {trained_bits:.3f} |
| the same shape untrained | {untrained_perplexity:.0f} | {untrained_bits:.3f} |
"""


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("build/demo-model"))
    parser.add_argument("--output", type=Path, default=BUNDLED)
    parser.add_argument("--max-steps", type=int, default=3600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--save-steps", type=int, default=200)
    parser.add_argument("--stop-after", type=int, default=0, help="leave after this many steps, state saved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()

    set_seed(options.seed)
    train_texts, held_out_texts = standard_library_text()
    tokenizer_dir = options.work_dir / "tokenizer"
    if tokenizer_dir.is_dir():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    else:
        tokenizer = train_tokenizer(train_texts)
        tokenizer.save_pretrained(tokenizer_dir)
    config = model_config(tokenizer)
    text = pack_text(train_texts, tokenizer, CONTEXT)
    held_out = pack_text(held_out_texts, tokenizer, CONTEXT)
    print(
        f"{len(text.sequences)} segments of {CONTEXT} tokens to train on, {len(held_out.sequences)} held out",
        flush=True,
    )

    set_seed(options.seed)
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters", flush=True)
    untrained = perplexity(model, held_out)
    if not train(model, text, options.work_dir, options):
        print("stopped with the state saved; start again to go on")
        return
    model.cpu().bfloat16()
    trained = perplexity(model, held_out)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    card = CARD.format(
        **CONFIG,
        parameters=model.num_parameters(),
        steps=options.max_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        python=platform.python_version(),
        held_out=", ".join(HELD_OUT_MODULES),
        trained_perplexity=trained.perplexity,
        trained_bits=trained.bits_per_byte,
        untrained_perplexity=untrained.perplexity,
        untrained_bits=untrained.bits_per_byte,
    )
    (options.output / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps({"perplexity": trained.perplexity, "bits_per_byte": trained.bits_per_byte}))
    assert math.isfinite(trained.perplexity)


if __name__ == "__main__":
    main()
