"""BERT and the encoders with its layout."""

from __future__ import annotations

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, StackSpec

HEADS = DimensionSpec(
    kind="heads",
    members=(
        MemberSpec(module="attention.self.query", axis="output", segments=(("head",),)),
        MemberSpec(module="attention.self.key", axis="output", segments=(("head",),)),
        MemberSpec(module="attention.self.value", axis="output", segments=(("head",),)),
    ),
    consumer=MemberSpec(module="attention.output.dense", axis="input", segments=(("head",),)),
    # The config has no width of a head: it is the hidden size divided by the number of heads, so that a smaller number
    # would make wider heads. The modules remember the number, too, but only their own width of a head is read.
    widths=(),
    default=False,
)
CHANNELS = DimensionSpec(
    kind="channels",
    members=(MemberSpec(module="intermediate.dense", axis="output", segments=(("channel",),)),),
    consumer=MemberSpec(module="output.dense", axis="input", segments=(("channel",),)),
    widths=(Number(name="intermediate_size", count="groups"),),
    fine=True,
)


def _encoder(model_type: str, prefix: str) -> ArchitectureSpec:
    return ArchitectureSpec(
        model_type=model_type,
        stacks=(StackSpec(blocks=f"{prefix}.encoder.layer", dimensions=(HEADS, CHANNELS)),),
        auto_class="AutoModelForMaskedLM",
    )


BERT = _encoder("bert", "bert")
ROBERTA = _encoder("roberta", "roberta")
XLM_ROBERTA = _encoder("xlm-roberta", "roberta")

SPECS = (BERT, ROBERTA, XLM_ROBERTA)
