"""Numbers of the device on their way to the host, which does not wait for them until it asks."""

import torch
from torch import Tensor


class Reading:
    """A copy that the device makes when it gets there.

    Args:
        values: (n,) on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=True)  # from a GPU into page-locked memory
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def numbers(self) -> list[float]:
        """The values; waits for what the device had been given before the copy, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(value) for value in self._values.tolist()]
