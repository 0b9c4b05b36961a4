"""What an exported file says about itself, and how changes to it are noticed."""

import json
from pathlib import Path

import pytest
from tests.exporting.fakes import CATEGORIES, manifest_of

from lw_retinanet.errors import WeightsError
from lw_retinanet.exporting.manifest import opened, require_network, sealed
from lw_retinanet.models.retinanet import RetinaNet

WHERE = Path("model.onnx")


def test_what_is_sealed_opens_as_it_was(model: RetinaNet) -> None:
    manifest = manifest_of(model).model_copy(update={"kept_layers": ("head.cls",), "agreement": {"largest": 1e-6}})
    text, seal = sealed(manifest)
    assert text.isascii()  # XML and protocol buffers carry it as it is
    assert "\n" not in text
    assert opened(text, seal, where=WHERE) == manifest
    assert opened(text, seal, where=WHERE).record.categories == CATEGORIES


def test_one_changed_word_is_noticed(model: RetinaNet) -> None:
    text, seal = sealed(manifest_of(model))
    altered = text.replace('"score_threshold":0.05', '"score_threshold":0.04')
    assert altered != text
    with pytest.raises(WeightsError, match=r"metadata of model\.onnx was altered"):
        opened(altered, seal, where=WHERE)
    with pytest.raises(WeightsError, match="was altered"):
        opened(text, None, where=WHERE)


@pytest.mark.parametrize("text", [None, ""])
def test_a_foreign_file_is_named_as_such(text: str | None) -> None:
    with pytest.raises(WeightsError, match="was not exported by this program"):
        opened(text, None, where=WHERE)


def test_a_manifest_of_another_version_is_refused(model: RetinaNet) -> None:
    import hashlib

    values = {**json.loads(sealed(manifest_of(model))[0]), "format": 2}
    text = json.dumps(values)
    with pytest.raises(WeightsError, match="another version"):
        opened(text, hashlib.sha256(text.encode()).hexdigest(), where=WHERE)


def test_weights_of_another_export_are_noticed(model: RetinaNet) -> None:
    manifest = manifest_of(model).model_copy(update={"network_sha256": "a" * 64})
    require_network(manifest, "a" * 64, where=WHERE)
    with pytest.raises(WeightsError, match="not the one that was exported with this metadata"):
        require_network(manifest, "b" * 64, where=WHERE)
