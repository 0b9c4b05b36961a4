"""The planned memory of a training step against the peak of a real one, in this process.

    python benchmarks/step_memory.py [--backbone resnet18] [--size 320] [--batch 2] [--recipe default|paper] [--bf16] [--device cpu|cuda]

On a CPU the peak is VmHWM of /proc/self/status, reset after a small step; on CUDA that of torch's allocator. Prints one JSON object;
``ratio`` is measured over planned.
"""

import argparse
import ctypes
import gc
import json
from pathlib import Path

import torch

from lw_retinanet import __version__
from lw_retinanet.config import TrainConfig, parse_config
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Targets
from lw_retinanet.training.distributed import World
from lw_retinanet.training.step import accumulate_gradients
from lw_retinanet.training.step_memory import step_memory
from lw_retinanet.weights.create import create_model

BOXES = 8


def make_batch(count: int, side: int) -> Batch:
    """Images of noise with boxes that some anchors fit."""
    random = torch.Generator().manual_seed(0)
    corners = torch.rand((count, BOXES, 2), generator=random) * side / 2
    boxes = torch.cat([corners, corners + side / 4], dim=2)
    labels = torch.zeros((count, BOXES), dtype=torch.int64)
    return Batch(
        images=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last),
        sizes_hw=torch.full((count, 2), side),
        scales_xy=torch.ones((count, 2)),
        targets=Targets(boxes=boxes, labels=labels, is_ignored=torch.zeros((count, BOXES), dtype=torch.bool)),
        indices=tuple(range(count)),
    )


def status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def step(model: RetinaNet, batch: Batch, config: TrainConfig, device: torch.device, use_bf16: bool) -> None:
    accumulate_gradients(model, [batch], config=config, conventions=model.conventions, world=World(device=device), use_bf16=use_bf16)
    model.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--preset", default="lw-v3")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    settings = {
        "model": {"backbone": options.backbone, "preset": options.preset, "norm": "frozen"},
        "train": {"recipe": options.recipe, "batch_size": options.batch},
    }
    config = parse_config(settings).resolved()
    model = create_model(config.model, num_classes=80, seed=0).to(device).to(memory_format=torch.channels_last).train()
    planned = step_memory(model, config=config.train, size_hw=(options.size, options.size), boxes_per_image=BOXES, use_bf16=options.bf16)
    # Kernels are chosen and threads started by a small step; what they keep is not the step's.
    step(model, make_batch(1, 64), config.train, device, options.bf16)
    batch = make_batch(options.batch, options.size)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, batch, config.train, device, options.bf16)
        measured = torch.cuda.max_memory_allocated() - before
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what the small step has left would be used again and not be seen
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = status_bytes("VmRSS")
        step(model, batch, config.train, device, options.bf16)
        measured = status_bytes("VmHWM") - before
    result = {
        "planned_bytes": planned.step,
        "measured_bytes": measured,
        "ratio": measured / planned.step,
        **vars(options),
        "torch": torch.__version__,
        "lw_retinanet": __version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
