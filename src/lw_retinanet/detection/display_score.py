"""The smallest score of detections that are shown to people; free of torch, for the command line."""

from typing import Literal

DISPLAY_SCORE = 0.3
"""``lw-retinanet predict``."""

SmallestScore = float | Literal["best"]
"""A score, or the one that the model file recommends."""
