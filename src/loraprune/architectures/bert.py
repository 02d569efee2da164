"""BERT and the encoders with its layout."""

from __future__ import annotations

from loraprune.architectures.parts import channels, heads
from loraprune.architectures.spec import ArchitectureSpec, StackSpec

# The config has no width of a head: it is the hidden size divided by the number of heads, so that a smaller number
# would make wider heads. The modules remember the number, too, but only their own width of a head is read.
_HEADS = heads("attention.self.query", "attention.self.key", "attention.self.value", consumer="attention.output.dense")
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
