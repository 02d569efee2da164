"""Training arguments that a run accepts. transformers and trl check neither their types nor their ranges."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from loraprune.options.field import SEEDS, check_choice, check_within

if TYPE_CHECKING:
    from transformers import TrainingArguments

_ANEW = "It does not work with a model whose layers change during the run."
_HUB = "It would upload states of the run. Push the result: --push-to-hub NAME (RunOptions(push_to_hub=NAME))."
REMEDIES = {
    "output_dir": "Say -o/--output.",
    "resume_from_checkpoint": "Say --resume.",
    "packing": "Plain text is packed and everything else is not.",
    "assistant_only_loss": "Say --answers-only or --no-answers-only.",
    "completion_only_loss": "Say --answers-only or --no-answers-only.",
    "eval_strategy": "Say --eval-steps N (RunOptions(eval_steps=N)).",
    "eval_steps": "Say --eval-steps N (RunOptions(eval_steps=N)).",
    "eval_on_start": "Perplexity is measured before and after training, on --eval-data.",
    "dataset_text_field": "Text is read from the column 'text'.",
    "model_init_kwargs": "The model is loaded in its own dtype.",
    "chat_template_path": "The tokenizer's own chat template is used; name another tokenizer with --tokenizer.",
    "eos_token": "The tokenizer's own is used; name another tokenizer with --tokenizer.",
    "save_only_model": "A run could not be resumed.",
    "padding_free": "Sequences are told apart by padding; plain text is packed.",
    "auto_find_batch_size": _ANEW,
    "load_best_model_at_end": "Say --load-best (RunOptions(load_best=True)).",
    "torch_compile": _ANEW,
    "fsdp": "Say --fsdp 2 (RunOptions(fsdp=2)).",
    "deepspeed": "Configure it for accelerate launch (distributed_type: DEEPSPEED).",
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
}
"""Training arguments that a run rejects, with the alternative."""

_COUNT, _SHARE, _POSITIVE = "[1, 2147483647]", "[0, 1)", "[0, inf)"
RANGES = {
    "learning_rate": _POSITIVE,
    "weight_decay": _POSITIVE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _POSITIVE,
    "label_smoothing_factor": "[0, 1]",
    "neftune_noise_alpha": _POSITIVE,
    "router_aux_loss_coef": _POSITIVE,
    "num_train_epochs": _POSITIVE,
    "max_steps": "[-1, 2147483647]",
    "warmup_steps": _POSITIVE,
    "logging_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "save_total_limit": _POSITIVE,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "dataset_num_proc": "[0, 1024]",
    "dataloader_num_workers": "[0, 1024]",
    "dataloader_prefetch_factor": "[1, 1024]",
    "ddp_bucket_cap_mb": _COUNT,
    "pad_to_multiple_of": _COUNT,
    "ddp_timeout": _COUNT,
    "seed": SEEDS,
    "data_seed": SEEDS,
}
"""Allowed intervals of numbers. Other integers must fit in 32 bits, and other numbers must be finite."""

_NUMBERS: dict[Any, type] = {int: Integral, float: Real}


def check_given(given: Mapping[str, Any], cls: type[TrainingArguments]) -> None:
    """Check the names and values of training arguments before any of them is used.

    Args:
        given: arguments by name; ``cls`` itself reports unknown names.
        cls: class of the arguments.

    Raises:
        ValueError: a run does not accept an argument, or its value is invalid.
    """
    defaults = {field.name: field.default for field in fields(cls) if field.init}
    types = get_type_hints(cls)
    for name, value in given.items():
        if name in defaults:
            if name in REMEDIES and value is not None and value != defaults[name]:
                raise ValueError(f"{name} is not a training argument of a run. {REMEDIES[name]}")
            _check_value(name, value, {*get_args(types[name])} or {types[name]})
    if given.get("fp16"):
        raise ValueError(
            "fp16 training is not supported: its loss scaling would get into the scores. Use bf16 or 32 bits."
        )
    if given.get("save_strategy") is not None:
        strategy = given["save_strategy"]
        check_choice("save_strategy", str(getattr(strategy, "value", strategy)), ("steps", "epoch", "no"))


def _check_value(name: str, value: Any, types: set[Any]) -> None:
    """Check the type and the range of one value."""
    kinds = types - {type(None)}
    number = _NUMBERS.get(*kinds) if len(kinds) == 1 else None
    if value is None:
        if type(None) not in types and (number is not None or kinds == {bool}):
            raise ValueError(f"{name} is None. Give it a value, or leave it out.")
    elif kinds == {bool}:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be True or False.")
    elif number is not None:
        if not isinstance(value, number) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be {'a whole number' if int in kinds else 'a number'}.")
        check_within(name, value, RANGES.get(name, "[-2147483648, 2147483647]"))
    elif name in RANGES and re.fullmatch(r"[+-]?\d+", str(value)):  # of a type that also accepts words
        check_within(name, int(value), RANGES[name])
    elif name.endswith(("_kwargs", "_config")) and isinstance(value, str) and not value.lstrip().startswith("{"):
        raise ValueError(f'{name} is {value!r}; it must be a mapping, in JSON: {{"NAME": VALUE}}.')


def check_usable(arguments: TrainingArguments) -> None:
    """Check that the optimizer, its schedule and kernels can be created. Otherwise, errors appear late.

    Raises:
        ValueError: a package is missing, or an option that one of them needs.
    """
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.utils import is_liger_kernel_available

    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("use_liger_kernel needs the package liger-kernel. Install it, or leave the option out.")
    if getattr(arguments, "activation_offloading", False) and not torch.accelerator.is_available():
        raise ValueError("activation_offloading needs an accelerator, and this machine has none. Leave it out.")
    name = str(getattr(arguments.optim, "value", arguments.optim))
    late = (ValueError,) if name.startswith(_OF_MODELS) else ()
    _try("optim", name, lambda: Trainer.get_optimizer_cls_and_kwargs(arguments), late)
    schedule: Any = arguments.lr_scheduler_type
    further: Any = arguments.lr_scheduler_kwargs or {}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    _try(
        "lr_scheduler_type",
        str(getattr(schedule, "value", schedule)),
        lambda: get_scheduler(schedule, optimizer, 1, 8, scheduler_specific_kwargs=dict(further)),
    )


_OF_MODELS = ("galore", "apollo", "lomo", "adalomo")
"""Prefixes of optimizers that cannot be created without a model."""


def _try(name: str, value: str, make: Callable[[], object], late: tuple[type[Exception], ...] = ()) -> None:
    """Create the object that an option names. Errors of the types ``late`` are ignored here."""
    try:
        make()
    except late:
        return
    except (ValueError, TypeError, ImportError, AttributeError, KeyError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{name} is {value!r}, which cannot be used: {why}") from None
