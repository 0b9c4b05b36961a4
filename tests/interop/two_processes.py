"""One of two processes that train a light detector together: ``two_processes.py MEETING_FILE RANK P3|all|rpn``."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from lw_retinanet.heads import PRESETS, HeadPlan, Level, TowerPlan, block_tower
from lw_retinanet.interop.torchvision_lighten import light_copy


class TwoLevels(nn.Module):
    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.down = nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        finest = self.stem(images)
        return {"0": finest, "1": self.down(finest.relu())}


def main(meeting_file: str, rank: int, levels: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 24), (32, 48)), ((0.5, 1.0),) * 2)
    sizes: Any = {"min_size": 64, "max_size": 64}
    model: Any = RetinaNet(TwoLevels(), 3, anchor_generator=anchors, **sizes)
    if levels == "rpn":
        pool = MultiScaleRoIAlign(["0", "1"], 3, 1)
        model = FasterRCNN(TwoLevels(), 3, rpn_anchor_generator=anchors, box_roi_pool=pool, **sizes)
    own: dict[Level, TowerPlan] = {"P3": block_tower("v3"), "P4": block_tower("v3")}
    plans = {"P3": PRESETS["lw-v3-released"], "all": HeadPlan(cls=own, bbox=own), "rpn": PRESETS["lw-v3"]}
    light = light_copy(model, plans[levels]).train()
    # A parameter that gets no gradient would stop the second step: unused ones are not looked for.
    parallel = DistributedDataParallel(light)
    optimiser = torch.optim.SGD([parameter for parameter in light.parameters() if parameter.requires_grad], lr=0.01)
    torch.manual_seed(rank)
    for _ in range(3):
        image = torch.rand(3, 64, 64)
        losses = parallel([image], [{"boxes": torch.tensor([[8.0, 8.0, 30.0 + 20 * rank, 40.0]]), "labels": torch.tensor([rank])}])
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    print(f"{sum(parameter.double().abs().sum().item() for parameter in light.parameters()):.12f}")  # noqa: T201
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
