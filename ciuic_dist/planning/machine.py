"""What a machine can do: its devices, the links between them, and the tiers below."""

from __future__ import annotations

from dataclasses import dataclass

from ciuic_dist.planning.profile import Pass


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates as training reaches them, not as they are advertised. Bytes, bytes a second, seconds."""

    name: str
    nodes: int
    devices: int
    """Of a node; each is one rank's."""
    memory: int
    """Of a device."""
    bf16: float
    """Floating-point operations a second of a device in large matrix products of bf16."""
    fp32: float
    """The same of fp32."""
    bandwidth: float
    """Of a device's memory."""
    launch: float
    """That an operator takes at the least, and where it was timed by itself, beside that."""
    update: float = 0.0
    """Parameters a second that AdamW updates; 0: as many as memory allows."""
    peers: float = 0.0
    """That a device gets from the others of its node in a collective."""
    network: float = 0.0
    """That a node gets from other nodes, all its adapters together."""
    latency: float = 0.0
    """Of a collective."""
    host: int = 0
    """Memory of a node that may be used to spill to."""
    up: float = 0.0
    """From the host's memory to a device, when all devices do so."""
    down: float = 0.0
    duplex: bool = True
    """Whether both directions run at once."""
    nvme: int = 0
    """Of a node."""
    read: float = 0.0
    """Of the drives of a node together."""
    write: float = 0.0
    moving: float = 0.0
    """Processor seconds that a byte between tiers takes from computing: none where copies run beside it."""
    showing: float = 0.0
    """The same of a byte of parameters that is mapped to where the model looks for it, and hidden again."""
    shared: bool = False
    """Devices are cores of their node: what one has the others there map, nothing is sent between them."""

    @property
    def world(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices

    @property
    def node_host(self) -> int:
        """Memory of the host for each of its devices."""
        return self.host // self.devices

    @property
    def node_nvme(self) -> int:
        """Bytes of the node's drives for each of its devices."""
        return self.nvme // self.devices

    def seconds(self, p: Pass, precision: str) -> float:
        """How long a pass computes: arithmetic or memory, whichever is slower, or launching where that is (roofline).

        S. Williams, A. Waterman, D. Patterson, "Roofline", 2009.
        """
        if p.seconds:
            return p.seconds + p.ops * self.launch
        products = max(p.flops / (self.bf16 if precision == "bf16" else self.fp32), p.streamed / self.bandwidth)
        return max(products + p.touched / self.bandwidth, p.ops * self.launch)

    def maps(self, ranks: int) -> bool:
        """Whether so many neighbours have one pool."""
        return self.shared and ranks <= self.devices

    def gather_seconds(self, nbytes: float, ranks: int) -> float:
        """Of an all-gather after which each of so many neighbours has ``nbytes``, or a reduce-scatter of as many.

        Within a node all but a rank's own part comes from its peers; what comes from other nodes comes once. Over Gloo
        each rank gets the others' parts by itself, and the processor is busy with one after the other.
        """
        if ranks == 1 or self.maps(ranks):
            return 0.0
        here = min(ranks, self.devices)
        near = (here - 1 if self.shared else ranks - 1) if here > 1 else 0
        far = (ranks - here) * (here if self.shared else 1)
        inside = nbytes * near / ranks / self.peers if near else 0.0
        across = nbytes * far / ranks / self.network if far else 0.0
        return self.latency + (inside + across if self.shared else max(inside, across))

    def replica_seconds(self, nbytes: float, group: int) -> float:
        """Of adding up shards of ``nbytes`` over all groups of so many neighbours, first within nodes, all at once."""
        if group == self.world:
            return 0.0
        here = max(1, self.devices // group)
        nodes = self.world // group // here
        peers = self.peers or self.bandwidth  # of cores that have one pool else
        inside = 2 * nbytes * (here - 1) / here / peers if here > 1 else 0.0
        across = 2 * nbytes * (nodes - 1) / nodes * (self.devices // here) / self.network if nodes > 1 else 0.0
        return self.latency + inside + across
