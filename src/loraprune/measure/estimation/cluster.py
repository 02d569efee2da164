"""GPUs of a run: their number and connections, and how they share the work."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.links import Link, Ring
from loraprune.options.field import check_fields, setting

STRATEGIES = ("ddp", "fsdp2")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The GPUs of a run.

    Attributes:
        gpus: GPUs per node.
        nodes: number of nodes.
        strategy: ``ddp`` (each GPU holds the whole model) or ``fsdp2`` (the frozen base is sharded); None is ddp if one
            GPU holds the run, else fsdp2.
        node_bandwidth: GB per second from a GPU to another one of its node; None is that of the GPU's data sheet.
        network_bandwidth: GB per second from a node to other nodes, over all its adapters; None is that of a usual node
            with such GPUs.
    """

    gpus: int = setting(1, "GPUs in each node", within="[1, 1024]")
    nodes: int = setting(1, "number of nodes", within="[1, 65536]")
    strategy: str | None = setting(
        None,
        "ddp keeps the whole model on each GPU; fsdp2 shards the base model",
        choices=STRATEGIES,
        shown="ddp if one GPU holds the run, else fsdp2",
    )
    node_bandwidth: float | None = setting(
        None,
        "bandwidth between two GPUs of a node, in GB/s and one direction",
        within="(0, inf)",
        shown="from the data sheet",
    )
    network_bandwidth: float | None = setting(
        None,
        "bandwidth between a node and the others, in GB/s and one direction",
        within="(0, inf)",
        shown="that of a usual node",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.processes == 1:
            for name in ("strategy", "node_bandwidth", "network_bandwidth"):
                if getattr(self, name) is not None:
                    raise ValueError(f"You passed {name}, and there is one GPU. Set the number of GPUs: gpus, nodes.")
        if self.node_bandwidth is not None and self.gpus == 1:
            raise ValueError("You passed node_bandwidth, and each node has one GPU. Leave it out, or raise gpus.")
        if self.network_bandwidth is not None and self.nodes == 1:
            raise ValueError("You passed network_bandwidth, and there is one node. Leave it out, or raise nodes.")

    @property
    def processes(self) -> int:
        """Number of processes, one per GPU."""
        return self.gpus * self.nodes

    def check(self, quantization: str | None, device: str) -> None:
        """Check that a run can be distributed in this way.

        Raises:
            ValueError: it cannot.
        """
        if self.processes > 1 and device != "cuda":
            raise ValueError(f"device is {device!r}, and several GPUs share the run. Leave device out.")
        if self.strategy == "fsdp2" and quantization is not None:
            raise ValueError(
                f"strategy is 'fsdp2', and the base is quantized ({quantization}): quantized weights cannot be shared "
                "out. Choose ddp, or leave the quantization out."
            )

    def ring(self, link: Link, gpus: int | None = None, nodes: int | None = None) -> Ring:
        """The GPUs as a ring; other numbers of GPUs are connected in the same way."""
        gpus, nodes = gpus or self.gpus, nodes or self.nodes
        return Ring(
            gpus=gpus,
            nodes=nodes,
            within=self.node_bandwidth or link.within,
            between=self.network_bandwidth or link.between(gpus),
            hop=link.hop,
        )
