"""Models whose shares DeepSpeed keeps for a step, against whole ones; a script for the processes of a launcher.

``kept.py RESULTS FOLDER NAME [NAME ...]``, like ``shared_out.py``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft import LoraConfig, get_peft_model
from tests.processes.shared_out import IDS, saved_models
from torch import nn
from transformers import AutoModelForCausalLM

from loraprune.checkpoint.sharded import sharded_loading, take_over_
from loraprune.processes.ranks import join, leave
from loraprune.processes.sharding import whole
from loraprune.processes.zero import kept_by_zero3

ZERO = {"stage": 3, "stage3_param_persistence_threshold": 0}
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": ZERO,
    "zero_allow_untested_optimizer": True,
    "gradient_clipping": 0.0,
}


def _loss(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits.float().logsumexp(-1).mean()


def _course(folder: Path, *, kept: bool) -> dict[str, Any]:
    """Losses before and after a step, and the weights after it."""
    further = sharded_loading() if kept else {}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **further).eval()
    if kept:
        take_over_(model)
    torch.manual_seed(5)
    tuned: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    found: dict[str, Any] = {}
    linear = nn.functional.linear
    with kept_by_zero3(tuned, ZERO) if kept else nullcontext():
        if kept:
            engine, *_ = deepspeed.initialize(model=tuned, optimizer=optimizer, config=CONFIG)
            loss = _loss(engine)
            engine.backward(loss)
            found["whole"] = sum(p.numel() for n, p in tuned.named_parameters() if ".layers." in n or ".h." in n)
            engine.step()
            engine.destroy()
        else:
            loss = _loss(tuned)
            loss.backward()
            optimizer.step()
        found["before"] = loss.item()
    if kept:  # here the engine is alive, and remembers parameters
        gc.collect()
        plain = [each for each in gc.get_objects() if type(each) is nn.Parameter and not each.requires_grad]
        found["left_over"] = sum(each.untyped_storage().nbytes() for each in plain if each.device.type == "cpu")
        del engine
    found["restored"] = nn.functional.linear is linear and type(tuned._parameters) is dict
    with torch.no_grad():
        found["after"] = _loss(tuned).item()
    found["sum"] = sum(float(whole(value).double().abs().sum()) for value in tuned.parameters())
    return found


def main(arguments: list[str]) -> None:
    results, folder, *names = arguments
    join()
    found: dict[str, Any] = {}
    for name, path in saved_models(folder, names):
        found[name] = {"alone": _course(path, kept=False)}
        gc.collect()
        found[name]["kept"] = _course(path, kept=True)
    Path(f"{results}.{os.environ['RANK']}").write_text(json.dumps(found), encoding="utf-8")
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
