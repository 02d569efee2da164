"""Tokenizers that transformers 4 reads, too: class name, special tokens, and the SentencePiece file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"
SENTENCEPIECE_FILE = "tokenizer.model"

_PLAIN = "PreTrainedTokenizerFast"
"""Class that loads ``tokenizer.json`` unchanged in both versions; transformers 5 writes another name for it."""

_ONLY_IN_5 = ("TokenizersBackend",)
_FRAMING = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
"""Classes that in transformers 4 always add the first token (BOS) and never the last, whatever the file says."""


def _begins_only(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds the first token (BOS) and nothing else."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(tokenizer("a")["input_ids"] == [tokenizer.bos_token_id, *alone])


def with_older_names(values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return a tokenizer config that transformers 4.57 and 5 read alike.

    Args:
        values: values of ``tokenizer_config.json``, as transformers 5 writes it.
        tokenizer: tokenizer that was saved.
    """
    found = dict(values)
    name = str(found.get("tokenizer_class")).removesuffix("Fast")
    if name in _ONLY_IN_5 or (name in _FRAMING and not _begins_only(tokenizer)):
        found["tokenizer_class"] = _PLAIN
        # The plain class has other defaults, so those of the original class are written out.
        found |= {"model_input_names": list(tokenizer.model_input_names), "padding_side": tokenizer.padding_side}
    if isinstance(found.get("extra_special_tokens"), list):  # transformers 4 needs a name for each of these
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    if named := found.get("model_specific_special_tokens"):
        found["extra_special_tokens"] = named
    return found


def mend_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a saved tokenizer readable by transformers 4, and copy the base's SentencePiece file, if there is one.

    Args:
        folder: folder that ``save_pretrained`` wrote.
        tokenizer: tokenizer that was saved there. One with its own code is not changed.
    """
    file = folder / TOKENIZER_CONFIG
    if not file.is_file():
        return
    values = json.loads(file.read_text(encoding="utf-8"))
    if not type(tokenizer).__module__.startswith("transformers_modules"):
        values.pop("auto_map", None)
        values = with_older_names(values, tokenizer)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    source = _of_base(tokenizer)
    if source is not None and not (folder / SENTENCEPIECE_FILE).exists():
        shutil.copyfile(source, folder / SENTENCEPIECE_FILE)


def _of_base(tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """Return the SentencePiece file of the tokenizer's original checkpoint; None if it is not available locally."""
    from transformers.utils import cached_file

    name = tokenizer.name_or_path
    try:
        found = cached_file(name, SENTENCEPIECE_FILE, local_files_only=True) if name else None
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)
