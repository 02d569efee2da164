"""Registration of our model types with transformers, so that our checkpoints load without code from their folder.

``import loraprune`` calls :func:`register_with_transformers`. That takes no time: a config class is made when a
checkpoint needs it, and its model classes when the first config is made.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TRIGGER = "transformers.models.auto.configuration_auto"


def register_with_transformers() -> None:
    """Register now if transformers is imported, otherwise right after its import."""
    if TRIGGER in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(importlib.abc.MetaPathFinder):
    """Import hook that registers our types right after the import of one module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


class _ConfigsOnDemand(dict[str, Any]):
    """The configs registered with transformers, and ours, each made on first access."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and _is_ours(key))

    def __missing__(self, key: str) -> Any:
        if not _is_ours(key):
            raise KeyError(key)
        self[key] = made = _config_class(key)
        return made


def _register() -> None:
    """Register the config class of each family. Its model classes follow when the first config is made.

    Making all classes takes a second. If transformers keeps its registry in a plain dictionary, as today, each class is
    made only when it is needed.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    registered = getattr(CONFIG_MAPPING, "_extra_content", None)
    if type(registered) is dict:
        CONFIG_MAPPING._extra_content = _ConfigsOnDemand(registered)
    elif not isinstance(registered, _ConfigsOnDemand):
        for model_type in _our_types():
            AutoConfig.register(model_type, _config_class(model_type), exist_ok=True)


def _our_types() -> list[str]:
    from loraprune.architectures import PREFIX, supported

    return [name for name in (f"{PREFIX}{model_type}" for model_type in supported()) if _is_ours(name)]


def _is_ours(model_type: str) -> bool:
    """Whether a model type is our prefix and a family that both transformers and this package know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from loraprune.architectures import PREFIX, supported

    stock = model_type.removeprefix(PREFIX)
    return stock != model_type and stock in CONFIG_MAPPING_NAMES and stock in supported()


def _config_class(model_type: str) -> Any:
    """Make our config class. It registers its model classes when its first config is made."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from loraprune.architectures import PREFIX
    from loraprune.checkpoint.pruned_class import pruned_config_class

    stock = model_type.removeprefix(PREFIX)
    config_class: Any = pruned_config_class(CONFIG_MAPPING_NAMES[stock], stock)
    make = config_class.__init__
    pending = [True]

    def make_and_register(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if pending:
            pending.clear()
            _register_models(config_class, stock)

    config_class.__init__ = make_and_register
    return config_class


def _register_models(config_class: Any, model_type: str) -> None:
    """Register our subclass of each stock model class of a family with the same auto class."""
    import transformers

    from loraprune.checkpoint.pruned_class import AUTO_CLASSES, pruned_model_class

    for auto_name in dict.fromkeys(AUTO_CLASSES.values()):
        auto = getattr(transformers, auto_name)
        model_name = auto._model_mapping._model_mapping.get(model_type)
        if isinstance(model_name, (tuple, list)):  # several classes for one task (DeiT with and without distillation)
            model_name = model_name[0]
        if isinstance(model_name, str) and hasattr(transformers, model_name):
            model_class = pruned_model_class(config_class.__bases__[0].__name__, model_name, model_type)
            auto.register(config_class, model_class, exist_ok=True)
