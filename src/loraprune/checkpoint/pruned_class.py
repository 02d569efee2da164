"""Models that no stock config can describe: a subclass of the stock class whose tensors are cut to listed shapes.

The source of the subclass is a template. An output folder contains that source, so the checkpoint loads with
``trust_remote_code``. This package runs the same source, so that ``import loraprune`` is enough.
"""

from __future__ import annotations

import functools
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.architectures import PREFIX
from loraprune.surgery.config_widths import described_widths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan

MODELING_FILE = "modeling_loraprune.py"
_FORMAT = 1

CONFIG_SOURCE = """from transformers import {config}


class Pruned{config}({config}):
    model_type = "{prefix}{model_type}"
    pruned: dict | None = None
"""

MODEL_SOURCE = '''import copy

from torch import nn
from transformers import {model}


def find(model, name):
    """Find a module by its name in the saved model. This model may lack the saved model's head, or add one."""
    prefix = model.base_model_prefix + "."
    for path in (name, name.removeprefix(prefix), prefix + name):
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise ValueError(f"The config lists a cut of {{name!r}}, which {{type(model).__name__}} does not have.")


def cut(model, pruned):
    """Cut a newly built model to the listed widths."""
    if not isinstance(pruned, dict) or pruned.get("format") != {format}:
        raise ValueError("The config's description of pruned widths is broken, or of another version of loraprune.")
    for name, length in pruned["lists"].items():
        del find(model, name)[length:]
    for name, shape in pruned["shapes"].items():
        owner, _, leaf = name.rpartition(".")
        module = find(model, owner)
        old = getattr(module, leaf)
        new = old.data[tuple(slice(length) for length in shape)].clone()
        setattr(module, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        if isinstance(module, nn.Embedding):
            module.embedding_dim = shape[1]
        elif leaf == "weight" and len(shape) == 2:
            sizes = shape[::-1] if hasattr(module, "nf") else shape  # GPT-2's Conv1D is transposed
            for size, attributes in zip(sizes, (("out_features", "nf"), ("in_features", "nx"))):
                for attribute in attributes:
                    if hasattr(module, attribute):
                        setattr(module, attribute, size)
        if hasattr(module, "normalized_shape"):
            module.normalized_shape = tuple(module.weight.shape)
    for name, numbers in pruned["numbers"].items():
        module = find(model, name) if name else model
        for attribute, value in numbers.items():
            owner, _, leaf = attribute.rpartition(".")
            if owner:  # a config that all layers share: this layer gets a copy
                setattr(module, owner, copy.copy(getattr(module, owner)))
            setattr(getattr(module, owner) if owner else module, leaf, value)


class Pruned{model}({model}):
    config_class = Pruned{config}

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        if config.pruned is not None:
            cut(self, config.pruned)
'''

OLDER_HEADS = {"GPTNeoXForCausalLM": "embed_out"}
"""Name in transformers 4 of a head that is ``lm_head`` in 5. Transformers 5 renames tensors for its own classes."""

OLDER_HEAD_SOURCE = """
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        if "{name}.weight" in cls._tied_weights_keys:  # transformers 4
            kwargs.setdefault("key_mapping", {{"^lm_head": "{name}"}})
        return super().from_pretrained(*args, **kwargs)
"""

_HEAD = '''"""{model} with widths that its stock config cannot state. Written by loraprune.

``config.pruned`` lists the shapes of the tensors that were cut, and the sizes that modules store as attributes.
Everything else is {model} of the transformers library.
"""

'''

AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "Model": "AutoModel",
}
"""Auto class of transformers by the ending of a model class's name."""


def stock_classes(model: PreTrainedModel) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """Return the config and model class of the transformers library, also for a model of our subclass.

    Raises:
        ValueError: transformers has no such class, so no modeling file can import it.
    """
    import transformers

    model_class: Any = type(model)
    config_class: Any = type(model.config)
    if model.config.model_type.startswith(PREFIX):
        model_class, config_class = model_class.__bases__[0], config_class.__bases__[0]
    for found in (model_class, config_class):
        if getattr(transformers, found.__name__, None) is not found:
            raise ValueError(
                f"{found.__name__} is not a class of the transformers library, so loraprune cannot save widths that "
                "its config cannot state. Use the same widths in all layers (--allocation balanced, no --keep-layers)."
            )
    return config_class, model_class


@functools.cache
def pruned_config_class(config_name: str, model_type: str) -> type[PretrainedConfig]:
    """Return our subclass of a stock config class, made from its source once in a process."""
    module = types.ModuleType(f"loraprune.generated.{model_type}")
    sys.modules[module.__name__] = module
    _run(CONFIG_SOURCE.format(config=config_name, model_type=model_type, prefix=PREFIX), module)
    made: type[PretrainedConfig] = getattr(module, f"Pruned{config_name}")
    return made


@functools.cache
def pruned_model_class(config_name: str, model_name: str, model_type: str) -> type[PreTrainedModel]:
    """Return our subclass of a stock model class, made from its source once in a process."""
    module = sys.modules[pruned_config_class(config_name, model_type).__module__]
    _run(_model_source(model_name).format(config=config_name, model=model_name, format=_FORMAT), module)
    made: Any = getattr(module, f"Pruned{model_name}")
    text = source(config_name, model_name, model_type)

    def save_pretrained(self: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the model, with its modeling file beside the weights."""
        self.config.auto_map = _auto_map(config_name, model_name, "AutoModel")
        super(made, self).save_pretrained(save_directory, *args, **kwargs)
        (Path(save_directory) / MODELING_FILE).write_text(text, encoding="utf-8")

    made.save_pretrained = save_pretrained
    found: type[PreTrainedModel] = made
    return found


def _model_source(model_name: str) -> str:
    name = OLDER_HEADS.get(model_name)
    return MODEL_SOURCE + (OLDER_HEAD_SOURCE.format(name=name).replace("{", "{{").replace("}", "}}") if name else "")


def _run(text: str, module: types.ModuleType) -> None:
    exec(compile(text, f"<{module.__name__}>", "exec"), module.__dict__)


def source(config_name: str, model_name: str, model_type: str) -> str:
    """Return the source of the modeling file for a stock class."""
    parts = _HEAD + CONFIG_SOURCE + "\n\n" + _model_source(model_name)
    imports: list[str] = []
    lines: list[str] = []
    for line in parts.format(
        config=config_name, model=model_name, model_type=model_type, prefix=PREFIX, format=_FORMAT
    ).splitlines():
        (imports if line.startswith(("import ", "from ")) else lines).append(line)
    head = lines.index('"""', 1) + 1
    rest = re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines[head:]).strip())
    plain = sorted({line for line in imports if line.startswith("import ")})
    named = sorted(line for line in imports if line.startswith("from ") and "transformers" not in line)
    both = f"from transformers import {config_name}, {model_name}"
    return "\n".join([*lines[:head], "", *plain, "", *named, both, "", "", rest, ""])


def _differing_shapes(model: nn.Module, stock: nn.Module) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return shapes of tensors that differ from the stock model's, and lengths of lists that lost modules."""
    there = {**dict(stock.named_parameters()), **dict(stock.named_buffers())}
    shapes = {
        name: list(tensor.shape)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name in there and there[name].shape != tensor.shape
    }
    before = {name: len(module) for name, module in stock.named_modules() if isinstance(module, nn.ModuleList)}
    lists = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) < before.get(name, 0)
    }
    return shapes, lists


def as_pruned_class(model: PreTrainedModel, structure: Structure, plan: Plan) -> PreTrainedModel:
    """Return a model as our subclass, which lists its shapes in its config. The tensors are shared.

    Args:
        model: model cut to the plan, without adapters.
        structure: structure of the model before pruning.
        plan: plan that the model was cut to.
    """
    config_class, model_class = stock_classes(model)
    values = model.config.to_dict()
    for key in ("pruned", "auto_map", "architectures", "transformers_version"):
        values.pop(key, None)
    values["model_type"] = config_class.model_type
    with torch.device("meta"):
        stock = model_class(config_class.from_dict(values))
    shapes, lists = _differing_shapes(model, stock)
    described = described_widths(model.config, structure, plan)
    names = (config_class.__name__, model_class.__name__, config_class.model_type)
    values.pop("model_type")
    config: Any = pruned_config_class(names[0], names[2]).from_dict(values)
    config.pruned = {
        "format": _FORMAT,
        "base_model_type": config_class.model_type,
        "blocks": described["blocks"],
        "shapes": shapes,
        "lists": lists,
        "numbers": described["numbers"],
    }
    config.auto_map = _auto_map(names[0], names[1], structure.spec.auto_class)
    if len({plan.count(dimension.name) for dimension in structure.of_kind("experts")}) > 1:
        config.output_router_logits = False  # the loss that reads them assumes the same number of experts everywhere
    config._attn_implementation = model.config._attn_implementation
    return rebuilt(model, pruned_model_class(*names), config)


def _auto_map(config_name: str, model_name: str, otherwise: str) -> dict[str, str]:
    """Return the config's ``auto_map``; ``otherwise`` is the auto class for an ending not in ``AUTO_CLASSES``."""
    auto_class = next((auto for ending, auto in AUTO_CLASSES.items() if model_name.endswith(ending)), otherwise)
    stem = Path(MODELING_FILE).stem
    return {"AutoConfig": f"{stem}.Pruned{config_name}", auto_class: f"{stem}.Pruned{model_name}"}


def rebuilt(model: PreTrainedModel, model_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of another class and config with the same tensors."""
    with torch.device("meta"):
        other = model_class(config)
    other.load_state_dict(model.state_dict(), assign=True, strict=True)
    other.tie_weights()
    # Buffers outside the state dict (rotary frequencies) are still on the meta device.
    buffers = dict(model.named_buffers())
    for name, buffer in list(other.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(owner), leaf, buffers[name])
    if getattr(model, "generation_config", None) is not None:
        other.generation_config = model.generation_config
    other.config.dtype = model.config.dtype
    finished: PreTrainedModel = other.eval()
    return finished


def is_pruned_class(model: PreTrainedModel) -> bool:
    """Whether a model needs our modeling file."""
    return bool(model.config.model_type.startswith(PREFIX))


def is_stock(model: PreTrainedModel) -> bool:
    """Whether a model's class is in the transformers library, not in its checkpoint's code or in this package."""
    return type(model).__module__.startswith("transformers.")
