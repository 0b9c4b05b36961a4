"""A lightened torchvision RetinaNet in a Lightning module: trained, saved and loaded by Lightning. Run it where Lightning is installed.

    python -m venv /tmp/lightning && /tmp/lightning/bin/pip install pytorch-lightning .
    /tmp/lightning/bin/python scripts/clients/lightning_client.py

The recipe is that of docs/lightening.md: the constructor takes the preset, so that ``load_from_checkpoint`` builds the light structure
before it loads, strictly. Exit code 1 if the boxes before and after differ, or if weights get into the wrong structure without a word.
"""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import retinanet_resnet50_fpn

import lw_retinanet as lw


class LightDetector(pl.LightningModule):
    """A user's module: a full detector, or a light one if ``light`` names a preset."""

    def __init__(self, light: str | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        size = {"min_size": 96, "max_size": 128, "score_thresh": 0.0}
        self.detector: Any = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, **size)
        if light:
            self.detector = lw.lighten(self.detector, light)

    def training_step(self, batch: Any, _: int) -> Tensor:
        """The sum of the losses."""
        return sum(self.detector(*batch).values())  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD((one for one in self.parameters() if one.requires_grad), lr=1e-4)


def boxes(module: LightDetector, image: Tensor) -> dict[str, Tensor]:
    """The answer for one image."""
    with torch.no_grad():
        found: dict[str, Tensor] = module.eval().detector([image])[0]
    return found


def main() -> int:
    """Train two steps, save, load, compare; then try the two wrong ways."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    image = torch.rand(3, 96, 128)
    target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
    batches = [([image], [target]), ([image.flip(2)], [target])]
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        )
        module = LightDetector(light="lw-narrow")
        trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        before = boxes(module, image)
        trainer.save_checkpoint(Path(name) / "light.ckpt")
        again = LightDetector.load_from_checkpoint(Path(name) / "light.ckpt", map_location="cpu")
        after = boxes(again, image)
        same = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        counts = f"{len(before['scores'])} boxes before saving, {len(after['scores'])} after"
        print(f"load_from_checkpoint: {counts}: {'same' if same else 'DIFFERENT'}")
        wrong += not same
        for what, weights, into in (
            ("light weights into a full model", module, LightDetector()),
            ("full weights into a light model", LightDetector(), LightDetector(light="lw-narrow")),
        ):
            try:
                into.load_state_dict(weights.state_dict())
                print(f"{what}: LOADED WITHOUT A WORD")
                wrong += 1
            except RuntimeError as error:
                print(f"{what}: refused, {str(error).splitlines()[1].strip()[:100]}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
