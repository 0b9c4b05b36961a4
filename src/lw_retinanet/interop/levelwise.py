"""The place of :mod:`lw_retinanet.weights.foreign.levelwise` in earlier versions, which pickles of light models name."""

from lw_retinanet.weights.foreign.levelwise import LevelHead, LevelWise, _blank

__all__ = ["LevelHead", "LevelWise", "_blank"]
