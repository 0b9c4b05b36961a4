"""A model for other classes: what stays is bit-equal, and new rows start at the prior."""

import pytest
import torch
from pydantic import TypeAdapter

from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.heads import PRESETS, HeadPlan
from lw_retinanet.models.build import build
from lw_retinanet.weights.classes import change_classes
from lw_retinanet.weights.model_file import LoadedModel, make_record

OLD = ("person", "Traffic Light", "dog")


def loaded(plan: HeadPlan) -> LoadedModel:
    torch.manual_seed(1)
    model = build(plan, num_classes=3, backbone="resnet18", width=32)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_()
    categories = tuple(Category(id=number, name=name) for number, name in enumerate(OLD))
    record = make_record(
        model, preset="any", backbone="resnet18", width=32, norm="frozen", plan=plan, categories=categories, notes={"from": "here"}
    )
    return LoadedModel(model=model.eval(), record=record)


def categories(*names: str) -> tuple[Category, ...]:
    return tuple(Category(id=10 * number, name=name) for number, name in enumerate(names))


@pytest.mark.parametrize("preset", ["retinanet", "lw-v3", "bbox-v1", "lw-v3-released"])
def test_only_the_class_predictions_change(preset: str) -> None:
    before = loaded(PRESETS[preset])
    kept = {name: tensor.clone() for name, tensor in before.model.state_dict().items()}
    after = change_classes(before, categories("dog", "cat", "traffic_light", "mouse"))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in before.model.state_dict().items())
    assert [c.id for c in after.record.categories] == [0, 10, 20, 30]
    assert after.record.notes["from"] == "here"
    assert after.record.notes["classes_changed"]["kept"] == ["dog", "traffic_light"]
    assert not after.model.training
    found = after.model.state_dict()
    changed = [name for name in found if "cls" in name and "predict" in name]
    assert len(changed) == (4 if preset.startswith("lw") else 2)
    for name, tensor in found.items():
        if name not in changed:
            assert torch.equal(tensor, kept[name]), name
            continue
        new, old = tensor.unflatten(0, (9, 4)), kept[name].unflatten(0, (9, 3))
        assert torch.equal(new[:, 0], old[:, 2]), name
        assert torch.equal(new[:, 2], old[:, 1]), name
        fresh = new[:, [1, 3]]
        if name.endswith("bias"):
            assert torch.allclose(fresh.sigmoid(), torch.tensor(0.01))
        else:
            # 1x1: 9 * 2 * 32 values, so the deviation is known to about 3 %.
            assert fresh.std().item() == pytest.approx(0.01, rel=0.15)


def test_a_depthwise_prediction_keeps_its_spatial_part() -> None:
    plan = TypeAdapter(HeadPlan).validate_python({"cls": {"P3": {"units": ["dw3x3+1x1"], "predict": "dw3x3+1x1"}}})
    before = loaded(plan)
    # 36 = 9 anchors x 4 classes, while the depthwise kernel has 32 channels: neither may be taken for the other.
    found = change_classes(before, categories("dog", "a", "b", "c")).model.state_dict()
    kept = before.model.state_dict()
    assert torch.equal(found["head.cls.own_predict.P3.0.weight"], kept["head.cls.own_predict.P3.0.weight"])
    new, old = (state["head.cls.own_predict.P3.1.weight"] for state in (found, kept))
    assert torch.equal(new.unflatten(0, (9, 4))[:, 0], old.unflatten(0, (9, 3))[:, 2])


def test_a_depthwise_prediction_whose_width_looks_like_classes() -> None:
    # 32 channels divide by 2 classes.
    plan = TypeAdapter(HeadPlan).validate_python({"cls": {"P3": {"units": ["dw3x3+1x1"], "predict": "dw3x3+1x1"}}})
    before = loaded(plan)
    found = change_classes(before, categories("x", "y")).model.state_dict()
    name = "head.cls.own_predict.P3.0.weight"
    assert torch.equal(found[name], before.model.state_dict()[name])


def test_the_same_names_change_nothing_and_a_seed_repeats() -> None:
    before = loaded(HeadPlan())
    same = change_classes(before, categories(*OLD))
    assert all(torch.equal(tensor, same.model.state_dict()[name]) for name, tensor in before.model.state_dict().items())
    assert [c.id for c in same.record.categories] == [0, 10, 20]
    weight = "head.cls.shared_predict.weight"
    first, again, other = (change_classes(before, categories("x"), seed).model.state_dict()[weight] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_lists_that_cannot_be_classes_are_refused() -> None:
    before = loaded(HeadPlan())
    with pytest.raises(WeightsError, match="at least one class"):
        change_classes(before, ())
    with pytest.raises(WeightsError, match="two classes are called 'A b', case and spaces aside"):
        change_classes(before, categories("A b", "a_B"))
