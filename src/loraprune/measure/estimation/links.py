"""Connections between the GPUs of a run, and durations of NCCL's collective operations on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

COLLECTIVE_SHARE = 0.7
"""Share of a connection's bandwidth that collective operations reach. An assumption, not a measurement."""

LAUNCH = 8.4e-6
"""Latency in seconds before a collective operation sends anything."""

NETWORK_HOP = 14.0e-6
"""Seconds for one step of a ring from node to node."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Usual connections of one kind of GPU; bandwidths are for one direction.

    Attributes:
        name: name of the connection inside a node.
        within: GB per second from a GPU to another one of its node.
        hop: seconds for one step of a ring inside a node.
        adapter: GB per second of a network adapter.
        adapter_a_gpu: whether a node has one adapter per GPU; else it has a single one.
    """

    name: str
    within: float
    hop: float
    adapter: float = 12.5
    adapter_a_gpu: bool = False

    def between(self, gpus: int) -> float:
        """GB per second that a node with this number of GPUs sends to other nodes."""
        return self.adapter * (gpus if self.adapter_a_gpu else 1)


_NVLINK_HOP, _PCIE_HOP = 3.4e-6, 5.7e-6

PCIE_3 = Link(name="PCIe 3.0 x16", within=16, hop=_PCIE_HOP)
PCIE_4 = Link(name="PCIe 4.0 x16", within=32, hop=_PCIE_HOP)
PCIE_5 = Link(name="PCIe 5.0 x16", within=64, hop=_PCIE_HOP)
NVLINK_3 = Link(name="NVLink 3", within=300, hop=_NVLINK_HOP, adapter=25, adapter_a_gpu=True)
NVLINK_4 = Link(name="NVLink 4", within=450, hop=_NVLINK_HOP, adapter=50, adapter_a_gpu=True)
"""Sources. NVLink and PCIe: half of the bandwidth in the data sheets, which count both directions: A100 600 GB/s, H100
and H200 900, L4, L40S and A10 64 (PCIe 4.0), T4 32 (PCIe 3.0). Network: NVIDIA's DGX A100 has a 200 Gb/s adapter for
each GPU, DGX H100 a 400 Gb/s one; one adapter of 100 Gb/s a node for all others is an assumption. Seconds, here and
above: the table of NCCL (``src/graph/tuning.cc``) for rings with the protocol Simple, by which NCCL itself chooses.
"""


@dataclass(frozen=True, kw_only=True)
class Ring:
    """All processes of a run in a ring.

    Attributes:
        gpus: GPUs per node.
        nodes: number of nodes.
        within: GB per second from a GPU to another one of its node.
        between: GB per second from a node to other nodes.
        hop: seconds for one step inside a node.
    """

    gpus: int
    nodes: int
    within: float
    between: float
    hop: float

    @property
    def processes(self) -> int:
        """Number of processes, one per GPU."""
        return self.gpus * self.nodes

    @property
    def bandwidth(self) -> float:
        """Bytes per second around the ring, limited by its slowest part.

        Parallel rings use all adapters of a node together, and each ring enters and leaves a node once.
        """
        parts = ([self.within] if self.gpus > 1 else []) + ([self.between] if self.nodes > 1 else [])
        return min(parts, default=math.inf) * 1e9 * COLLECTIVE_SHARE

    def sent(self, total: float) -> float:
        """Bytes that each process sends to gather ``total`` bytes everywhere: ``(N − 1)/N`` of them."""
        return total * (self.processes - 1) / self.processes

    def gather_seconds(self, total: float, calls: float = 1) -> float:
        """Seconds until every process has all shards.

        Args:
            total: bytes of all shards together.
            calls: number of operations.
        """
        if self.processes == 1:
            return 0.0
        hops = (self.processes - self.nodes) * self.hop + (self.nodes - 1) * NETWORK_HOP
        return self.sent(total) / self.bandwidth + calls * (LAUNCH + hops)

    def sum_seconds(self, total: float, calls: float = 1) -> float:
        """Seconds until every process has the sum of all: ``2(N − 1)/N`` of the bytes, in twice as many steps.

        Args:
            total: bytes of one summand.
            calls: number of operations.
        """
        return 2 * self.gather_seconds(total, calls) - (calls * LAUNCH if self.processes > 1 else 0.0)
