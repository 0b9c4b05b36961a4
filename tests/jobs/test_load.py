"""What can be opened as a detector."""

from typing import Any

import pytest
import torch
from torchvision.models import detection

from lw_retinanet.errors import WeightsError
from lw_retinanet.jobs.load import open_detector


class _Weights:
    """torchvision's table of weights, with what its cache holds."""

    def __init__(self, state: dict[str, torch.Tensor] | None) -> None:
        self.DEFAULT = self
        self._state = state

    def get_state_dict(self, **_: Any) -> dict[str, torch.Tensor]:
        if self._state is None:
            raise OSError("no route to host")
        return self._state


def test_torchvisions_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    state = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr("lw_retinanet.weights.foreign.torchvision.get_model_weights", lambda _: _Weights(state))
    detector = open_detector("torchvision:retinanet_resnet50_fpn_v2")
    assert len(detector.categories) == 80
    assert (detector.categories[0].id, detector.categories[0].name) == (1, "person")
    assert detector.conventions.p6_source == "C5"  # as in v2 only


def test_without_a_network_or_with_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lw_retinanet.weights.foreign.torchvision.get_model_weights", lambda _: _Weights(None))
    with pytest.raises(WeightsError, match=r"no route to host.*convert them to a model file"):
        open_detector("torchvision:retinanet_resnet50_fpn_v2")
    with pytest.raises(WeightsError, match="did you mean retinanet_resnet50_fpn"):
        open_detector("torchvision:retinanet_resnet50")
