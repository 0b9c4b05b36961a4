"""Signal to noise of layers, by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from lw_retinanet.exporting.quantisation import layer_errors, write_layer_errors


def test_worst_layer_comes_first_in_decibels(tmp_path: Path) -> None:
    # Signal energy 4 * 1; noise 4 * 0.1^2: 10 log10(100) = 20 dB. Noise 4 * 1: 0 dB. None at all: infinite.
    ones = np.ones((1, 4), np.float32)
    reference = [ones, ones, ones]
    quantised = [ones + np.float32(0.1), ones * 2, ones]
    inputs = [{"images": ones}, {"images": ones}]
    rows = layer_errors(lambda _: reference, lambda _: quantised, inputs, ["mild", "bad", "kept"], kept=["kept"])
    assert [row.layer for row in rows] == ["bad", "mild", "kept"]
    assert rows[0].signal_to_noise == pytest.approx(0.0, abs=1e-6)
    assert rows[1].signal_to_noise == pytest.approx(20.0, abs=1e-4)
    assert rows[2].signal_to_noise == math.inf
    assert [row.is_kept for row in rows] == [False, False, True]
    assert rows[2].as_dict()["signal_to_noise_db"] is None  # infinity is no JSON
    write_layer_errors(rows, tmp_path / "layers.csv")
    assert (tmp_path / "layers.csv").read_text().splitlines() == [
        "layer,signal_to_noise_db,is_kept", "bad,0.00,false", "mild,20.00,false", "kept,,true"
    ]  # fmt: skip


def test_energies_are_summed_over_images() -> None:
    # Image 1: signal 9, noise 0; image 2: signal 1, noise 1. 10 log10(10 / 1) = 10 dB, not the mean of infinity and 0.
    answers = {0: (3.0, 3.0), 1: (1.0, 0.0)}
    inputs = [{"images": np.array([number])} for number in answers]
    rows = layer_errors(
        lambda feeds: [np.array([answers[int(feeds["images"][0])][0]])],
        lambda feeds: [np.array([answers[int(feeds["images"][0])][1]])],
        inputs,
        ["layer"],
        kept=[],
    )
    assert rows[0].signal_to_noise == pytest.approx(10.0)


def test_layer_without_signal_but_noise_is_the_worst() -> None:
    rows = layer_errors(lambda _: [np.zeros(2)], lambda _: [np.ones(2)], [{}], ["dead"], kept=[])
    assert rows[0].signal_to_noise == -math.inf
