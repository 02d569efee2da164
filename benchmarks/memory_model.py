"""How near the memory of ``loraprune plan`` comes: peaks of training steps, measured and estimated.

    python benchmarks/memory_model.py                 # small models on the CPU, by counting live tensors
    python benchmarks/memory_model.py --device cuda   # the same by the allocator, and LLaMA-7B's shape with four blocks

A step is that of ``loraprune prune``: trl's head and loss, the criterion's evidence and scores, AdamW. In small models
the loss takes most, so that rows with "plain loss" (the model's own, over few words) show what the blocks take.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config

from loraprune.checkpoint.load import quantization_config
from loraprune.checkpoint.source import ModelSource
from loraprune.cli.console import begin
from loraprune.layers.quantized import prepare_
from loraprune.measure.benchmark.memory import LiveBytes
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.estimate import estimate
from loraprune.measure.estimation.shape_models import ShapeModels
from loraprune.measure.estimation.simulated_step import StepSettings, simulate
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.group_run import GroupRun
from loraprune.pruning.pruner import gradients_finite
from loraprune.recipes.steps.quantized import adapter_in_32_bits_
from loraprune.structure.describe import describe
from loraprune.tasks.lora import lora_config
from loraprune.tasks.registry import task_of_config

FAR = 10**6  # steps: no cut falls due


def small_config(family: str, **changes: Any) -> PretrainedConfig:
    """A model of a few million parameters."""
    shared = {"vocab_size": 1024, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "gpt2":
        values = {"n_embd": 192, "n_layer": 4, "n_head": 6, "n_positions": 512, "architectures": ["GPT2LMHeadModel"]}
        dropouts = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
        return GPT2Config(**{**shared, **values, **dropouts, **changes})
    llama, cls = {
        "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 512, "architectures": ["LlamaForCausalLM"],
    }, LlamaConfig  # fmt: skip
    if family == "qwen2":
        cls = Qwen2Config
        llama |= {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True, "num_key_value_heads": 2}
    return cls(**{**shared, **llama, **changes})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    label: str
    config: PretrainedConfig
    settings: EstimateConfig = field(default_factory=EstimateConfig)
    own_loss: bool = False


def loaded(config: PretrainedConfig, settings: EstimateConfig) -> Any:
    """The model with random weights in the dtype of the settings, quantized where they say so, with its adapter."""
    dtype = getattr(torch, settings.dtype or "float32")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if settings.quantization is not None:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": settings.device},
                quantization_config=quantization_config(settings.quantization, dtype),
            )
        prepare_(model)
    model = model.to(settings.device) if settings.quantization is None else model
    from trl.trainer.utils import add_fused_lm_head  # since trl 1.15

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    structure, task = describe(model), task_of_config(config, "AutoModelForCausalLM")
    every_group = settings.pruning.criterion_name == "lora"
    adapted = get_peft_model(model, lora_config(settings.lora, structure, model, task, every_group=every_group))
    adapter_in_32_bits_(adapted)
    if settings.gradient_checkpointing:
        model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_checkpoint)
    return adapted.train()


def _checkpoint(*args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(*args, use_reentrant=False, **kwargs)


class Step:
    """A training step that can be repeated."""

    def __init__(self, config: PretrainedConfig, settings: EstimateConfig, *, own_loss: bool = False) -> None:
        self.settings, self.own_loss = settings, own_loss
        self.model = loaded(config, settings)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        shape = (settings.batch_size, settings.max_length)
        self.ids = torch.randint(config.vocab_size, shape, device=settings.device)
        self.run = GroupRun.of(self.model, PruningConfig(criterion=settings.pruning.criterion, repair="none"))
        self.run.micro_batches = settings.gradient_accumulation_steps
        self.run.begin(self.model, FAR)

    def __call__(self) -> None:
        """Forward, backward, scores, update."""
        for _ in range(self.settings.gradient_accumulation_steps):
            with torch.autocast(self.settings.device, torch.bfloat16, enabled=self.settings.autocast):
                loss = self._loss()
            loss.backward()
            del loss
        self.run.observe(usable=gradients_finite(self.model))
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self) -> torch.Tensor:
        ids = self.ids
        if self.own_loss:
            loss: torch.Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
            return loss
        output = self.model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True)
        return -output.log_probs.sum() / ids.numel()


def measured(step: Step) -> int:
    """Peak of a step that is not the first one: the optimizer has its states."""
    step()
    if step.settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with LiveBytes() as live:
        for tensor in (*step.model.parameters(), *step.model.buffers(), *_states(step.optimizer)):
            live.count(tensor)
        step()
    return live.peak


def estimated(config: PretrainedConfig, settings: EstimateConfig, *, own_loss: bool = False) -> float:
    """The same, from shapes."""
    if not own_loss:
        return estimate(config, settings).memory.step
    models = ShapeModels.of(ModelSource(name="model", config=config), None, ())
    dtype = getattr(torch, settings.dtype or "float32")
    model, structure = models.adapted(len(models.structure.blocks), None, dtype, settings)
    ids = models.inputs(settings.batch_size, settings.max_length or 0)["input_ids"]
    step = StepSettings(
        inputs={"input_ids": ids, "use_cache": False},
        labels=torch.empty_like(ids),
        fused=False,
        device=settings.device,
        autocast=settings.autocast,
        checkpointing=bool(settings.gradient_checkpointing),
        micro_batches=settings.gradient_accumulation_steps,
        criterion=settings.pruning.criterion,
    )
    return max(simulate(model, structure, step).peaks.values())


def _states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def settings(criterion: str, batch: int, length: int, **further: Any) -> EstimateConfig:
    """A run on the CPU in 32 bits without checkpointing, unless ``further`` says otherwise."""
    values = {"device": "cpu", "dtype": "float32", "gradient_checkpointing": False, **further}
    return EstimateConfig(pruning=PruningConfig(criterion=criterion), batch_size=batch, max_length=length, **values)


BF16 = {"dtype": "bfloat16", "bf16": True}
FULL = {"gradient_checkpointing": True}


def rows(device: str) -> list[Row]:
    """What is compared."""
    found = [
        Row(label=f"{family}, {criterion}, {batch}x{length}, {words}", config=small_config(family),
            settings=settings(criterion, batch, length, **{**further, "device": device}))
        for family in ("llama", "gpt2", "qwen2")
        for criterion in ("fisher", "lora", "taylor")
        for batch, length, further, words in (
            (2, 128, {}, "fp32"), (8, 128, FULL, "fp32, checkpointing"),
            (4, 128, BF16, "bf16"), (8, 256, {**BF16, **FULL}, "bf16, checkpointing"),
        )
    ]  # fmt: skip
    found += [
        Row(label=f"{family}, {criterion}, 4x128, {words}, plain loss", config=small_config(family, vocab_size=64),
            settings=settings(criterion, 4, 128, **{**further, "device": device}), own_loss=True)
        for family in ("llama", "gpt2", "qwen2")
        for criterion in ("fisher", "lora", "taylor")
        for further, words in (({}, "fp32"), ({**BF16, **FULL}, "bf16, checkpointing"))
    ]  # fmt: skip
    for quantization in ("bnb-8bit", "bnb-4bit"):
        further = {"device": device, "quantization": quantization, **(BF16 if device == "cuda" else {})}
        found.append(Row(label=f"llama, fisher, 4x128, {quantization}", config=small_config("llama"),
                         settings=settings("fisher", 4, 128, **further)))  # fmt: skip
    if device == "cuda":
        shape = small_config("llama", hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
                             num_key_value_heads=32, vocab_size=32000, max_position_embeddings=2048)  # fmt: skip
        for criterion in ("fisher", "lora", "taylor"):
            for further, words in ((BF16, "bf16"), ({**BF16, **FULL}, "bf16, checkpointing")):
                found.append(Row(label=f"LLaMA-7B's shape, 4 blocks, {criterion}, 4x1024, {words}", config=shape,
                                 settings=settings(criterion, 4, 1024, **further, device=device)))  # fmt: skip
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    device = parser.parse_args().device
    begin()
    print(f"{'step':62} {'measured':>12} {'estimated':>12} {'off by':>8}")
    worst = 0.0
    for row in rows(device):
        real = measured(Step(row.config, row.settings, own_loss=row.own_loss))
        guess = estimated(row.config, row.settings, own_loss=row.own_loss)
        worst = max(worst, abs(guess / real - 1))
        print(f"{row.label:62} {real / 1e6:9.2f} MB {guess / 1e6:9.2f} MB {guess / real - 1:+8.1%}", flush=True)
    print(f"at most {worst:.1%} off")


if __name__ == "__main__":
    main()
