"""BERT and the encoders with its layout."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.parts import channels, heads
from loraprune.architectures.spec import ArchitectureSpec, Number, StackSpec

# The config has no head width: it is the hidden size divided by the number of heads, so a smaller number would mean
# wider heads. The modules store the number; transformers 5 reads only their head width, 4 reads both.
_HEADS = replace(
    heads("attention.self.query", "attention.self.key", "attention.self.value", consumer="attention.output.dense"),
    numbers=(
        Number(module="attention.self", name="num_attention_heads", count="groups"),
        Number(module="attention.self", name="all_head_size", count="groups", times="attention_head_size"),
    ),
)
_CHANNELS = channels("intermediate.dense", consumer="output.dense", width="intermediate_size")


def _encoder(model_type: str, prefix: str) -> ArchitectureSpec:
    return ArchitectureSpec(
        model_type=model_type,
        stacks=(StackSpec(blocks=f"{prefix}.encoder.layer", dimensions=(_HEADS, _CHANNELS)),),
        auto_class="AutoModelForMaskedLM",
    )


BERT = _encoder("bert", "bert")
ROBERTA = _encoder("roberta", "roberta")
XLM_ROBERTA = _encoder("xlm-roberta", "roberta")

BERT_SPECS = (BERT, ROBERTA, XLM_ROBERTA)
