"""Random models' shapes and random plans, for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan


@st.composite
def shapes(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Changes to the config of a small model: head counts, head width, FFN width, biases, tied embeddings."""
    kv_heads = draw(st.integers(1, 4), label="KV heads")
    queries = draw(st.integers(1, 3), label="query heads per KV head")
    heads = kv_heads * queries
    values: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([2, 4, 6]), label="head_dim"),
        # A Llama's hidden size must be a multiple of its heads; the width of a head is free in every family.
        "hidden_size": heads * draw(st.integers(1, 3), label="hidden per head") * 2,
        "intermediate_size": draw(st.integers(1, 20), label="channels"),
        "tie_word_embeddings": draw(st.booleans(), label="tied"),
    }
    if family in ("llama", "qwen3"):
        values["attention_bias"] = draw(st.booleans(), label="attention bias")
    if family == "llama":
        values["mlp_bias"] = draw(st.booleans(), label="FFN bias")
    return values


@st.composite
def smaller_plans(draw: st.DrawFn, structure: Structure, plan: Plan, uniform: bool | None = None) -> Plan:
    """A plan that keeps some groups of ``plan``: equally many in every layer (``uniform``), or ragged."""
    if uniform is None:
        uniform = draw(st.booleans(), label="uniform")
    counts = {
        kind: draw(st.integers(1, min(plan.counts(structure, kind))), label=f"{kind} kept") for kind in structure.kinds
    }
    positions = {}
    for dimension in structure:
        there = range(plan.count(dimension.name))
        if uniform:
            chosen = draw(st.permutations(there))[: counts[dimension.kind]]
        else:
            chosen = draw(st.sets(st.sampled_from(there), min_size=1))
        positions[dimension.name] = sorted(chosen)
    return plan.keep(positions)


def plans(structure: Structure, uniform: bool | None = None) -> st.SearchStrategy[Plan]:
    """Any plan of a model."""
    return smaller_plans(structure, Plan.full(structure), uniform)
