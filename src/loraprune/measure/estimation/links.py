"""What connects the GPUs of a run, and how long the collective operations of NCCL take on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

COLLECTIVE_SHARE = 0.7
"""Share of a connection's bandwidth that collective operations reach. An assumption, not a measurement."""

LAUNCH = 8.4e-6
"""Seconds before a collective operation sends anything."""

NETWORK_HOP = 14.0e-6
"""Seconds for one step of a ring from node to node."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """How one kind of GPU is usually connected; bandwidths are of one direction.

    Attributes:
        name: of the connection inside a node.
        within: GB a second that a GPU sends to another one of its node.
        hop: seconds for one step of a ring inside a node.
        adapter: GB a second of a network adapter.
        adapter_a_gpu: whether a node has one adapter for each GPU; else it has one in all.
    """

    name: str
    within: float
    hop: float
    adapter: float = 12.5
    adapter_a_gpu: bool = False

    def between(self, gpus: int) -> float:
        """GB a second that a node with so many GPUs sends to other nodes."""
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
        gpus: of each node.
        nodes: how many.
        within: GB a second that a GPU sends to another one of its node.
        between: GB a second that a node sends to other nodes.
        hop: seconds for one step inside a node.
    """

    gpus: int
    nodes: int
    within: float
    between: float
    hop: float

    @property
    def processes(self) -> int:
        """One for each GPU."""
        return self.gpus * self.nodes

    @property
    def bandwidth(self) -> float:
        """Bytes a second that go round: those of the slowest part.

        Rings in parallel use all adapters of a node together, and each of them enters and leaves a node once.
        """
        parts = ([self.within] if self.gpus > 1 else []) + ([self.between] if self.nodes > 1 else [])
        return min(parts, default=math.inf) * 1e9 * COLLECTIVE_SHARE

    def sent(self, total: float) -> float:
        """Bytes that each process sends while all of ``total`` comes to all: ``(N − 1)/N`` of it."""
        return total * (self.processes - 1) / self.processes

    def gather_seconds(self, total: float, calls: float = 1) -> float:
        """Seconds until every process has all of what is shared out.

        Args:
            total: bytes of all parts together.
            calls: operations that it takes.
        """
        if self.processes == 1:
            return 0.0
        hops = (self.processes - self.nodes) * self.hop + (self.nodes - 1) * NETWORK_HOP
        return self.sent(total) / self.bandwidth + calls * (LAUNCH + hops)

    def sum_seconds(self, total: float, calls: float = 1) -> float:
        """Seconds until every process has the sum of all: ``2(N − 1)/N`` of the bytes, in twice as many steps.

        Args:
            total: bytes of one summand.
            calls: operations that it takes.
        """
        return 2 * self.gather_seconds(total, calls) - (calls * LAUNCH if self.processes > 1 else 0.0)
