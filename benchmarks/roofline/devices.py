"""Peaks of GPUs and their links, from data sheets, and the share of them that is assumed to be attainable."""

from __future__ import annotations

from dataclasses import dataclass

#: Share of a peak that is assumed where "attainable" is said: matrix products, memory, links. Assumed, not measured.
ATTAINABLE = {"products": 0.6, "memory": 0.8, "links": 0.7}
#: GPUs that NVLink connects, and that share a machine's InfiniBand adapters.
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Device:
    """Peaks of one GPU, per second.

    Attributes:
        name: Name of the GPU.
        matrix_flop: FLOP of dense products in bfloat16.
        vector_flop: FLOP of other operations in float32.
        memory: Bytes read from or written to its memory.
        nvlink: Bytes received from the other GPUs of its machine; half of what the data sheet adds up both ways.
        infiniband: Bytes received from other machines.

    References:
        [0] NVIDIA H100 Tensor Core GPU data sheet, column SXM, https://www.nvidia.com/en-us/data-center/h100/; the
            1,979 TFLOPS of its table are with sparsity, twice those of dense products
        [1] NVIDIA H200 Tensor Core GPU data sheet, https://www.nvidia.com/en-us/data-center/h200/
        [2] NVIDIA DGX H100 data sheet: eight ConnectX-7 adapters of 400 Gb/s for eight GPUs
    """

    name: str
    matrix_flop: float
    vector_flop: float
    memory: float
    nvlink: float = 450e9
    infiniband: float = 400e9 / 8

    def seconds(self, matrix_flop: float, vector_flop: float, num_bytes: float, *, attainable: bool = False) -> float:
        """The least time of one operation: the largest of the times of its products, its other FLOP and its bytes.

        Args:
            matrix_flop, vector_flop: FLOP of products and of other operations.
            num_bytes: Bytes read and written.
            attainable: Whether to take :data:`ATTAINABLE` shares of the peaks.
        """
        products, memory = (ATTAINABLE["products"], ATTAINABLE["memory"]) if attainable else (1.0, 1.0)
        return max(
            matrix_flop / (self.matrix_flop * products),
            vector_flop / (self.vector_flop * products),
            num_bytes / (self.memory * memory),
        )

    def seconds_of_links(self, num_bytes: float, num_gpus: int, *, attainable: bool = False) -> float:
        r"""The least time to gather, or to reduce and scatter, S bytes over n GPUs in machines of eight.

        .. math:: \max\left(\frac{S (n - 1) / n}{\text{NVLink}}, \frac{S (m - 1) / m}{8 \cdot \text{InfiniBand}}\right)

        for m = n / 8 machines: what a machine lacks comes once, by its eight adapters together.

        Args:
            num_bytes: S.
            num_gpus: n.
            attainable: Whether to take the :data:`ATTAINABLE` share of the peaks.
        """
        nodes = max(1, num_gpus // GPUS_PER_NODE)
        inside = num_bytes * (num_gpus - 1) / num_gpus / self.nvlink
        between = num_bytes * (nodes - 1) / nodes / (GPUS_PER_NODE * self.infiniband)
        return max(inside, between) / (ATTAINABLE["links"] if attainable else 1.0)

    @property
    def balance(self) -> float:
        """FLOP of products for each byte, from which on products and not memory are the limit."""
        return self.matrix_flop / self.memory


H100 = Device("H100 SXM", matrix_flop=989e12, vector_flop=67e12, memory=3.35e12)
H200 = Device("H200 SXM", matrix_flop=989e12, vector_flop=67e12, memory=4.8e12)
