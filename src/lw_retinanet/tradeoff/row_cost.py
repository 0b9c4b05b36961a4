"""The cost of a row: multiply-accumulates and parameters by block, for the commonest padded size of the images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.data.preprocess import padded_size, resized_size
from lw_retinanet.data.records import Records
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.tradeoff.rows import BlockCost


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """What one image costs.

    Args:
        size_hw: Padded size for which the arithmetic is counted.
        blocks: Cost of each block by name.
    """

    size_hw: tuple[int, int]
    blocks: Mapping[str, BlockCost]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all blocks."""
        return sum(cost.macs for cost in self.blocks.values())

    @property
    def params(self) -> int:
        """Parameters of all blocks."""
        return sum(cost.params for cost in self.blocks.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"size_hw": list(self.size_hw), "blocks": {name: list(cost) for name, cost in self.blocks.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The cost that :meth:`as_dict` wrote."""
        height, width = values["size_hw"]
        return cls(size_hw=(height, width), blocks={name: BlockCost(*cost) for name, cost in values["blocks"].items()})

    @classmethod
    def of(cls, model: RetinaNet, records: Records) -> Self:
        """Count a model for the images of a data set."""
        size_hw = counted_size(model, records)
        return cls(
            size_hw=size_hw,
            blocks={name: BlockCost(macs=cost.macs, params=cost.params) for name, cost in count_blocks(model, size_hw).items()},
        )


def counted_size(model: RetinaNet, records: Records) -> tuple[int, int]:
    """The commonest padded size of the images for a model; its arithmetic and its latency are measured at this size."""
    rule = model.conventions.input
    sizes = Counter(padded_size([resized_size((height, width), rule)], rule.pad_multiple) for height, width in records.sizes_hw.tolist())
    return max(sizes, key=lambda size: (sizes[size], size))
