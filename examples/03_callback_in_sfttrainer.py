"""Prune in a training script that you have: the lines marked ``# new`` are all that loraprune needs."""

import argparse
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from loraprune import PruningCallback, PruningConfig, save_pruned  # new
from loraprune.data.demo import demo_data, demo_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=demo_model(), help="folder or name on the Hub (default: the bundled model)")
parser.add_argument("--data", help="JSON Lines with a column 'text' (default: Python's standard library)")
parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
parser.add_argument("-o", "--output", type=Path, default=Path("pruned-by-callback"), help="folder of the result")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
data = str(options.data or demo_data(Path("demo-data"))[0])
pruning = PruningCallback(PruningConfig(ratio=0.5, cuts=4, calibration_sequences=40))  # new
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
    args=SFTConfig(
        "training",
        max_steps=options.steps,
        per_device_train_batch_size=8,
        max_length=128,
        learning_rate=2e-3,
        logging_steps=10,
        bf16=False,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=load_dataset("json", data_files=data, split="train"),
    processing_class=tokenizer,
    peft_config=LoraConfig(target_modules="all-linear"),
    callbacks=[pruning],  # new
)
pruning.lead_(trainer)  # new; needed for report_to and in several processes
trainer.train()
save_pruned(pruning, trainer.model, tokenizer, options.output)  # new, in place of trainer.save_model()

pruned = AutoModelForCausalLM.from_pretrained(options.output)  # an ordinary checkpoint
print(f"{pruned.num_parameters():,} parameters are left in {options.output}.")
