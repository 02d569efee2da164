"""What tests ask of models whose weights several processes share; a script for the processes of a launcher.

``shared_out.py RESULTS FOLDER NAME [NAME ...]`` saves a small model of each name of the zoo, shares it out, cuts it,
and writes down how far it is from one that no process shares.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tests.zoo import ROWS
from tests.zoo.row import Row
from transformers import AutoModelForCausalLM

from loraprune import Plan, describe
from loraprune.checkpoint.sharded import forget_, sharded_loading, take_over_
from loraprune.processes.ranks import from_main, is_main, join, leave, wait
from loraprune.processes.sharding import apart, gather_, is_shard, is_sharded, whole, whole_weights
from loraprune.surgery.merging import merged
from loraprune.surgery.slicing import slice_

IDS = torch.arange(1, 13).view(1, 12)


def _tuned(model: Any) -> Any:
    """A model with an adapter, after a backward pass."""
    torch.manual_seed(5)
    tuned: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    _loss(tuned).backward()
    return tuned


def _wrapped_parameters() -> int:
    """How many parameters FSDP2 keeps something of."""
    gc.collect()
    return sum(type(each).__name__ == "FSDPParam" for each in gc.get_objects())


def _loss(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits.float().logsumexp(-1).mean()


def _course(folder: Path, *, shared: bool) -> dict[str, Any]:
    """Losses and gradients of a model before and after a cut, and the sum of its merged weights."""
    further = sharded_loading() if shared else {}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **further).eval()
    found: dict[str, Any] = {}
    if shared:
        take_over_(model)
        own = sum(p.to_local().numel() if is_shard(p) else p.numel() for p in model.parameters())
        found["share"] = own / model.num_parameters()
    structure = describe(model)
    tuned = _tuned(model)
    found["before"] = _loss(tuned).item()
    tuned.zero_grad()
    slice_(tuned, structure, Plan.full(structure), Plan.uniform(structure, 0.3))
    loss = _loss(tuned)
    loss.backward()
    grown = sum(float(p.grad.abs().sum()) for p in tuned.parameters() if p.grad is not None)
    found |= {"after": loss.item(), "gradients": grown, "sharded": is_sharded(tuned)}
    tuned.zero_grad()
    del loss
    if shared:
        found["left_over"] = _wrapped_parameters() - sum(not p.requires_grad for p in tuned.parameters())
    tuned.load_state_dict(tuned.state_dict())
    found["loaded"] = _loss(tuned).item()
    plain: Any = merged(tuned, torch.float32)
    with torch.no_grad():
        found["merged"] = _loss(plain).item()
    if shared:
        gather_(plain, keep=is_main())
        forget_(plain)
        found["type"], found["config"] = type(plain).__name__, "distributed_config" in plain.config.to_dict()
    if plain.device.type != "meta":
        with torch.no_grad():
            found["whole"] = _loss(plain).item()
    return found


def _opened_twice(folder: Path) -> dict[str, Any]:
    """What is changed while it is open stays; opening again, or taking apart again, does nothing."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **sharded_loading()).eval()
    take_over_(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    block: Any = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))[0]
    with apart(model), apart(model), whole_weights(block), whole_weights(block):
        inside = not is_sharded(block)
        for parameter in block.parameters():
            parameter.data = parameter.data * 0 + 3
    values = {float(value) for parameter in block.parameters() for value in whole(parameter).unique()}
    still = head.weight is embedding.weight
    return {"inside": inside, "sharded": is_sharded(block), "values": sorted(values), "tied": [tied, still]}


def row_of(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def saved_models(folder: str, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Save the model of each row, from the first process, and yield its name and folder in all of them."""
    for name in names:
        path = Path(folder, name)
        if is_main():
            row_of(name).model().save_pretrained(path)
        wait()
        yield name, path


def main(arguments: list[str]) -> None:
    results, folder, *names = arguments
    join()
    found: dict[str, Any] = {}
    for name, path in saved_models(folder, names):
        found[name] = {"alone": from_main(lambda path=path: _course(path, shared=False))}  # type: ignore[misc]
        found[name]["shared"] = _course(path, shared=True)
    found["opened"] = _opened_twice(Path(folder, names[0]))
    rank = 0 if is_main() else 1
    Path(f"{results}.{rank}").write_text(json.dumps(found), encoding="utf-8")
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
