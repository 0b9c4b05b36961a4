from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.result import Result
from lw_retinanet.errors import ConfigError, ImageError, InputError
from lw_retinanet.structures import Predictions


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def same(one: Result, other: Result, atol: float = 1e-4) -> None:
    assert len(one)
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=atol)
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=100 * atol)
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.fixture(scope="module")
def full_and_light(detector: Detector) -> tuple[Detector, Detector]:
    """A plain RetinaNet, and the same with a light head of random weights beside its own."""
    import torch

    from lw_retinanet.heads import PRESETS, HeadPlan
    from lw_retinanet.lightening.surgery import lighten_copy
    from lw_retinanet.models.build import build
    from lw_retinanet.weights.model_file import make_record

    torch.manual_seed(0)
    names = {"backbone": "resnet18", "width": 16, "norm": "frozen"}
    full = build(HeadPlan(), num_classes=3, init="fan_in", conventions=detector.conventions, **names)  # type: ignore[arg-type]
    torch.nn.init.zeros_(full.head.cls.get_parameter("shared_predict.bias"))
    light, _ = lighten_copy(full, PRESETS["lw-v3"])
    record = make_record(
        light,
        preset="lw-v3",
        plan=light.head.plan,
        categories=detector.categories,
        notes={},
        **names,  # type: ignore[arg-type]
    ).model_copy(update={"switchable": True, "full_output": True})
    return Detector.of_model(full, detector.categories), Detector.of_model(light, detector.categories, record=record, name="two heads")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("b.png", "a.png", "deep/c.png")):
        Image.fromarray(noise(40, 60, 3, seed=number)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_every_kind_of_source_gives_one_result_a_image(detector: Detector, folder: Path) -> None:
    assert [result.file for result in detector.predict(folder)] == [str(folder / name) for name in ("a.png", "b.png", "deep/c.png")]
    assert [result.file for result in detector.predict(f"{folder}/?.png")] == [str(folder / "a.png"), str(folder / "b.png")]
    opened, array = Image.open(folder / "b.png"), noise(40, 60, 3, seed=0)
    several = detector.predict([folder / "b.png", opened, array, str(folder / "a.png")])
    assert [result.file for result in several] == [str(folder / "b.png"), None, None, str(folder / "a.png")]
    same(several[0], several[1], atol=0)
    same(several[0], several[2], atol=0)
    assert detector.predict([]) == []


def test_grey_is_the_same_as_three_equal_channels(detector: Detector) -> None:
    grey = noise(50, 64)
    colour = np.repeat(grey[..., None], 3, axis=2)
    expected = detector.predict(colour)[0]
    for picture in (grey, Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        result = detector.predict(picture)[0]
        np.testing.assert_array_equal(result.image, colour)
        same(result, expected, atol=0)


def test_transparent_pil_images_lie_on_white_as_files_do(detector: Detector, tmp_path: Path) -> None:
    pixels = noise(48, 64, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    from_file, from_pil = detector.predict([tmp_path / "a.png", Image.fromarray(pixels)])
    np.testing.assert_array_equal(from_pil.image, from_file.image)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"must be \(H, W, 3\) or \(H, W\) uint8 in RGB order, got \(8, 8, 3\) float32"),
        (np.zeros((8, 8, 4), np.uint8), r"got \(8, 8, 4\) uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"got \(0, 8, 3\) uint8"),
        (Image.new("F", (8, 8)), "mode F is unknown; convert it"),
        ([3], "expected a file, folder, glob, PIL image or array, got int"),
        (None, "got NoneType"),
        ("nothing/*.jpg", "no file matches"),
    ],
)
def test_what_is_no_image_is_refused(detector: Detector, source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector.predict(source)


def test_a_pil_image_whose_file_is_cut_off_is_an_image_error(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with Image.open(path) as opened, pytest.raises(ImageError, match="PIL image cannot be decoded"):
        detector.predict(opened)


@pytest.mark.parametrize("as_file", [True, False])
def test_boxes_are_in_the_image_as_displayed(detector: Detector, as_file: bool, tmp_path: Path) -> None:
    # Stored lying on its side, to be turned by 90 degrees clockwise: what is shown is 40 wide and 64 high.
    shown = noise(64, 40, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(shown))).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert opened.size == (64, 40)
        result = detector.predict(tmp_path / "turned.png" if as_file else opened)[0]
    np.testing.assert_array_equal(result.image, shown)
    same(result, detector.predict(shown)[0], atol=0)
    assert result.to_dict()["height"] == 64
    assert result.boxes[:, 3].max() > 40  # beyond the stored height


def test_a_batch_equals_one_by_one(detector: Detector) -> None:
    # Of several sizes and shapes, all padded to 64 x 64, alone as together. Convolutions of a batch may sum in another order: 1e-4.
    images = [noise(64, 64, 3), noise(128, 100, 3, seed=1), noise(40, 48, 3, seed=2)]
    together = detector.predict_arrays(images, files=["a", "b", "c"])
    assert [result.file for result in together] == ["a", "b", "c"]
    for image, result in zip(images, together, strict=True):
        same(result, detector.predict_arrays([image])[0])
        assert result.boxes.min() >= 0
        assert (result.boxes.max(axis=0) <= [image.shape[1], image.shape[0]] * 2).all()


def test_boxes_come_back_at_the_images_own_scale(detector: Detector) -> None:
    small = noise(32, 64, 3)
    # Twice the size by repeating pixels, which the antialiased reduction to 64 undoes nearly; so boxes double.
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    one, two = detector.predict_arrays([small])[0], detector.predict_arrays([large])[0]
    assert one.boxes.max() <= 64
    assert 100 < two.boxes.max() <= 128


def test_the_score_threshold(detector: Detector) -> None:
    picture = noise(64, 64, 3)
    everything = detector.predict(picture)[0]
    limit = float(np.median(everything.scores))
    some = detector.predict(picture, score=limit)[0]
    assert 0 < len(some) < len(everything)
    assert (some.scores > limit).all()
    assert (np.diff(everything.scores) <= 0).all()
    assert len(detector.predict(picture, score=0.999)[0]) == 0
    assert detector.conventions.output.score_threshold == 0.05  # the call left the detector's own as it was
    for score in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="score must be from 0 to below 1"):
            detector.predict(picture, score=score)


def test_a_broken_file_does_not_stop_the_others(detector: Detector, folder: Path) -> None:
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    outcomes = list(detector.predict_files([folder / "a.png", folder / "b.png", folder / "gone.png", str(folder / "deep" / "c.png")]))
    assert [type(outcome) for outcome in outcomes] == [Result, ImageError, ImageError, Result]
    assert str(folder / "b.png") in str(outcomes[1])
    with pytest.raises(ImageError, match=r"b\.png"):
        detector.predict(folder)


def test_predicting_leaves_no_gradient_and_nothing_in_training_mode(detector: Detector) -> None:
    detector.predict(noise(32, 32, 3))
    assert not detector.model.training
    assert all(parameter.grad is None for parameter in detector.model.parameters())
    assert detector.class_names == ("red", "green", "blue")


def test_a_lightened_model_still_answers_with_its_full_head(full_and_light: tuple[Detector, Detector], folder: Path) -> None:
    full, light = full_and_light
    file, picture = folder / "a.png", noise(48, 64, 3)
    (expected,), (from_file,) = full.predict(picture), full.predict(file)
    same(light.predict(picture, head="full")[0], expected, atol=0)
    same(light.predict_arrays([picture], head="full")[0], expected, atol=0)
    same(light.predict(file, head="full")[0], from_file, atol=0)
    (listed,) = light.predict_files([file], head="full")
    assert isinstance(listed, Result)
    same(listed, from_file, atol=0)
    assert light.switchable
    assert not np.array_equal(light.predict(picture)[0].scores, expected.scores)


def test_a_detector_can_be_told_which_head_to_use_from_now_on(full_and_light: tuple[Detector, Detector]) -> None:
    full, light = full_and_light
    picture = noise(48, 64, 3)
    switched = light.with_head("full")
    same(switched.predict(picture)[0], full.predict(picture)[0], atol=0)
    same(switched.predict(picture, head="light")[0], light.predict(picture)[0], atol=0)
    assert (light.head, switched.head) == ("light", "full")
    assert switched.model is light.model


def test_a_model_with_nothing_but_its_full_head_has_both_names_for_it(full_and_light: tuple[Detector, Detector]) -> None:
    full, _ = full_and_light
    assert not full.switchable
    same(full.predict(noise(48, 64, 3), head="full")[0], full.predict(noise(48, 64, 3))[0], atol=0)


def test_a_head_that_is_not_there_is_refused(detector: Detector) -> None:
    # Trained light from the start: the shared tower has never seen P3.
    assert not detector.switchable
    with pytest.raises(InputError, match=r"^tiny holds one head only.*`lw-retinanet lighten`"):
        detector.predict(noise(32, 32, 3), head="full")
    with pytest.raises(InputError, match="one head only"):
        detector.with_head("full")
    with pytest.raises(ConfigError, match="head 'ful': expected light or full; did you mean full"):
        detector.with_head("ful")


def shaped(*sizes_hw: tuple[int, int]) -> list[NDArray[np.uint8]]:
    return [noise(*size_hw, 3, seed=seed) for seed, size_hw in enumerate(sizes_hw)]


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_answers_do_not_depend_on_the_neighbours(detector: Detector, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Resized to a longer side of 64 and padded to 32: 64 x 64, 32 x 64 and 64 x 32, which padding for a neighbour would change.
    images = shaped((64, 64), (32, 64), (64, 60), (30, 64), (64, 30), (100, 100), (16, 32))
    alone = [detector.predict(image)[0] for image in images]
    seen: list[tuple[int, ...]] = []
    network = detector.network

    def watched(batch: Tensor, **how: bool) -> Predictions:
        seen.append(tuple(batch.shape))
        return network(batch, **how)

    monkeypatch.setattr(detector, "network", watched)
    for result, expected in zip(detector.predict(images, batch_size=batch_size), alone, strict=True):
        same(result, expected)
    assert max(shape[0] for shape in seen) == min(batch_size, 3)
    assert {shape[2:] for shape in seen} == {(64, 64), (32, 64), (64, 32)}
    together = detector.predict_arrays(images)
    for result, expected in zip(together, alone, strict=True):
        same(result, expected)


def test_files_in_batches_keep_their_order_and_their_errors(detector: Detector, tmp_path: Path) -> None:
    files = []
    for number, image in enumerate(shaped((64, 64), (32, 64), (64, 64), (32, 64), (64, 60), (64, 30))):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    files[2].write_bytes(b"rubbish")
    outcomes = list(detector.predict_files([*files, tmp_path / "gone.png"], batch_size=3))
    assert [type(outcome) for outcome in outcomes] == [Result, Result, ImageError, Result, Result, Result, ImageError]
    assert "2.png" in str(outcomes[2])
    assert "gone.png" in str(outcomes[6])
    for file, outcome in zip(files, outcomes, strict=False):
        if isinstance(outcome, Result):
            assert outcome.file == str(file)
            same(outcome, detector.predict(file)[0])


def test_one_pil_image_may_come_twice(detector: Detector, folder: Path) -> None:
    with Image.open(folder / "a.png") as opened:
        one, two = detector.predict([opened, opened], batch_size=2)
    same(one, two, atol=1e-6)


def test_a_batch_of_nothing_is_refused(detector: Detector) -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        detector.predict(noise(8, 8, 3), batch_size=0)


def test_a_batch_that_does_not_fit_is_halved(detector: Detector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    most, images = 2, [noise(64, 64, 3, seed=seed) for seed in range(5)]
    expected = detector.predict(images, batch_size=1)
    whole = Detector.detections

    def small(self: Detector, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if len(inputs.images) > most:
            raise torch.OutOfMemoryError
        return whole(self, inputs, *arguments, **options)

    monkeypatch.setattr(Detector, "detections", small)
    found = detector.predict(images, batch_size=5)
    assert "too little memory for 5 images at a time; a batch_size of 2 is tried" in caplog.text
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=0.01)
    most = 0
    with pytest.raises(InputError, match="too little memory for one image; use the device cpu, or smaller images"):
        detector.predict(images[:1])
