"""Well-known shapes and accelerators, and from arithmetic to seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraprune.measure.estimation.links import NVLINK_3, NVLINK_4, PCIE_3, PCIE_4, PCIE_5, Link

_LLAMA: dict[str, Any] = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048}
LLAMA_2: dict[str, Any] = {**_LLAMA, "max_position_embeddings": 4096}
LLAMA_3: dict[str, Any] = {
    **_LLAMA, "vocab_size": 128256, "max_position_embeddings": 8192, "num_key_value_heads": 8,
}  # fmt: skip
QWEN: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768}
SMALL_QWEN: dict[str, Any] = {**QWEN, "vocab_size": 151936, "tie_word_embeddings": True}
QWEN_3: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128,
    "num_key_value_heads": 8,
}  # fmt: skip


def _shape(family: dict[str, Any], hidden: int, ffn: int, layers: int, heads: int, **further: Any) -> dict[str, Any]:
    return {
        "num_key_value_heads": heads,
        "tie_word_embeddings": False,
        **family,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "dtype": "bfloat16",
        **further,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "llama-7b": _shape(_LLAMA, 4096, 11008, 32, 32),
    "llama-13b": _shape(_LLAMA, 5120, 13824, 40, 40),
    "llama-30b": _shape(_LLAMA, 6656, 17920, 60, 52),
    "llama-65b": _shape(_LLAMA, 8192, 22016, 80, 64),
    "llama-2-7b": _shape(LLAMA_2, 4096, 11008, 32, 32),
    "llama-2-13b": _shape(LLAMA_2, 5120, 13824, 40, 40),
    "llama-2-70b": _shape(LLAMA_2, 8192, 28672, 80, 64, num_key_value_heads=8),
    "llama-3-8b": _shape(LLAMA_3, 4096, 14336, 32, 32),
    "llama-3-70b": _shape(LLAMA_3, 8192, 28672, 80, 64),
    "llama-3.1-405b": _shape(LLAMA_3, 16384, 53248, 126, 128, max_position_embeddings=131072),
    "llama-3.2-1b": _shape(LLAMA_3, 2048, 8192, 16, 32, tie_word_embeddings=True, max_position_embeddings=131072),
    "llama-3.2-3b": _shape(LLAMA_3, 3072, 8192, 28, 24, tie_word_embeddings=True, max_position_embeddings=131072),
    "mistral-7b": _shape(
        {"model_type": "mistral", "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": None},
        4096, 14336, 32, 32, num_key_value_heads=8,
    ),
    "qwen2.5-0.5b": _shape(SMALL_QWEN, 896, 4864, 24, 14, num_key_value_heads=2),
    "qwen2.5-1.5b": _shape(SMALL_QWEN, 1536, 8960, 28, 12, num_key_value_heads=2),
    "qwen2.5-7b": _shape(QWEN, 3584, 18944, 28, 28, num_key_value_heads=4),
    "qwen2.5-14b": _shape(QWEN, 5120, 13824, 48, 40, num_key_value_heads=8),
    "qwen2.5-32b": _shape(QWEN, 5120, 27648, 64, 40, num_key_value_heads=8),
    "qwen2.5-72b": _shape(QWEN, 8192, 29568, 80, 64, num_key_value_heads=8),
    "qwen3-4b": _shape(QWEN_3, 2560, 9728, 36, 32, tie_word_embeddings=True),
    "qwen3-8b": _shape(QWEN_3, 4096, 12288, 36, 32),
}  # fmt: skip
"""Config values by name. A folder or a file of the same name wins."""


# Common accelerators: how much memory they have for a run, and how fast they compute.

GIB = 1024**3

CONTEXT = 1.0
"""GiB that the CUDA context, cuBLAS workspaces and loaded kernels take. An assumption."""

FRAGMENTED = 0.05
"""Share of the memory that the caching allocator holds and cannot use. An assumption."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of accelerator.

    Attributes:
        name: as people say it.
        memory: GiB that the driver reports.
        tflops: peak of dense matrix products in bfloat16 with sums in 32 bits; without bfloat16, of 32 bits.
        bandwidth: of its memory, in GB a second.
        single: the same in 32 bits without TF32, in which the moments and least squares of a repair are computed.
        link: to other GPUs.
        bfloat16: whether it computes in bfloat16; ``loraprune prune`` trains in 32 bits where it does not.
    """

    name: str
    memory: float
    tflops: float
    bandwidth: float
    single: float
    link: Link
    bfloat16: bool = True

    @property
    def usable(self) -> float:
        """Bytes that tensors may take."""
        return (self.memory * (1 - FRAGMENTED) - CONTEXT) * GIB


GPUS = (
    Gpu(name="T4 16 GB", memory=15.0, tflops=8.1, bandwidth=320, single=8.1, link=PCIE_3, bfloat16=False),
    Gpu(name="L4 24 GB", memory=22.5, tflops=121, bandwidth=300, single=30.3, link=PCIE_4),
    Gpu(name="A10G 24 GB", memory=22.1, tflops=70, bandwidth=600, single=35, link=PCIE_4),
    Gpu(name="RTX 3090 24 GB", memory=24.0, tflops=71, bandwidth=936, single=35.6, link=PCIE_4),
    Gpu(name="RTX 4090 24 GB", memory=24.0, tflops=165, bandwidth=1008, single=82.6, link=PCIE_4),
    Gpu(name="RTX 5090 32 GB", memory=31.8, tflops=210, bandwidth=1792, single=104.8, link=PCIE_5),
    Gpu(name="A100 40 GB", memory=39.4, tflops=312, bandwidth=1555, single=19.5, link=NVLINK_3),
    Gpu(name="L40S 48 GB", memory=44.7, tflops=362, bandwidth=864, single=91.6, link=PCIE_4),
    Gpu(name="A100 80 GB", memory=79.2, tflops=312, bandwidth=2039, single=19.5, link=NVLINK_3),
    Gpu(name="H100 80 GB", memory=79.2, tflops=989, bandwidth=3350, single=67, link=NVLINK_4),
    Gpu(name="H200 141 GB", memory=139.8, tflops=989, bandwidth=4800, single=67, link=NVLINK_4),
)
"""By memory. Peaks and bandwidths are those of the vendor's data sheets: dense; of H100 and H200, the SXM cards."""


# From arithmetic to seconds: a share of the peak, and the traffic of weights that are dequantized anew each time.

UTILIZATION = 0.35
"""Share of a card's peak that LoRA tuning through transformers reaches. An assumption, not a measurement."""

BANDWIDTH_SHARE = 0.7
"""Share of the memory's bandwidth that copying kernels reach. An assumption."""


def step_seconds(flops: float, gpu: Gpu, *, dequantized: float = 0.0) -> float:
    """Seconds of a training step.

    Args:
        flops: floating point operations of the step.
        gpu: that it runs on.
        dequantized: bytes that are written and read again because weights are dequantized.
    """
    return flops / (gpu.tflops * 1e12 * UTILIZATION) + 2 * dequantized / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
