"""Whether everything runs on a device: two steps of a tiny model with every criterion on every base."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from gpu_model import PRESETS, random_model, with_lora
from transformers import PrinterCallback, Trainer, TrainingArguments

from loraprune.importance.configs import CRITERIA
from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.config import PruningConfig

TRAINED_ELSEWHERE = ("pst",)  # it is no criterion of groups: the joint recipe trains masks of single weights for it
REFUSED = {(bits, "taylor") for bits in (8, 4)}  # a quantized weight has no gradient
STEPS = 2
LENGTH = 32


def smoke(device: str, only: Sequence[str] | None = None) -> int:
    """Print a line for each combination; returns 1 if one of them broke.

    What the package refuses for a good reason, and a base that needs a library that is not there, is no failure.
    """
    criteria = (None, *(name for name in CRITERIA if name not in TRAINED_ELSEWHERE))
    if only:
        criteria = tuple(name for name in criteria if name and name.startswith(tuple(only)))
        if not criteria:
            raise SystemExit("No criterion has a name that begins so.")
    failed = 0
    for bits in (16, 8, 4):
        for criterion in criteria:
            for checkpointing in (False, True):
                verdict, detail = _tried(bits, criterion, checkpointing, device)
                failed += verdict == "FAIL"
                base = "bf16" if bits == 16 else f"{bits}-bit"
                how = "checkpointing" if checkpointing else "plain"
                print(f"{verdict:7} {base:5} {criterion or 'no pruning':10} {how:13} {detail}".rstrip(), flush=True)
    return int(failed > 0)


def _tried(bits: int, criterion: str | None, checkpointing: bool, device: str) -> tuple[str, str]:
    """``pass``, ``refused``, ``skipped`` or ``FAIL``, and the reason."""
    try:
        loss, ratio = _two_steps(bits, criterion, checkpointing, device)
    except ImportError as error:
        return "skipped", str(error)
    except Exception as error:
        if isinstance(error, ValueError) and (bits, criterion) in REFUSED:
            return "refused", str(error)
        return "FAIL", f"{type(error).__name__}: {error}"
    if not math.isfinite(loss):
        return "FAIL", f"the loss is {loss}"
    if criterion is not None and ratio <= 0.0:
        return "FAIL", "nothing was cut"
    return "pass", f"loss {loss:.3f}, {ratio:.0%} pruned"


def _two_steps(bits: int, criterion: str | None, checkpointing: bool, device: str) -> tuple[float, float]:
    """Final loss, and the ratio reached."""
    shape = PRESETS["tiny"].with_(bits=bits)
    model = with_lora(random_model(shape, torch.device(device)))
    rows: list[dict[str, Any]] = []
    for _ in range(4):
        ids = torch.randint(shape.vocabulary, (LENGTH,)).tolist()
        rows.append({"input_ids": ids, "labels": ids})
    ratio = 0.0 if criterion is None else 0.5
    config = PruningConfig(
        criterion=criterion or "fisher",
        ratio=ratio,
        prune_end=1.0,
        cuts=1,
        calibration_sequences=4,
        # The only kind that it scores; no layer reads blocks, so that there is nothing to refit.
        **({"dimensions": ("blocks",), "repair": "none"} if criterion == "position" else {}),
    )
    callback = PruningCallback(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=2,
            bf16=True,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            use_cpu=torch.device(device).type == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        trainer.args._n_gpu = min(trainer.args.n_gpu, 1)
        loss = trainer.train().training_loss
    assert callback.run is not None
    return loss, callback.run.ratio
