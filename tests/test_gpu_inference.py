"""The arithmetic of benchmarks/gpu_inference.py, which itself waits for a GPU."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.gpu_inference")


def row(preset: str, batch: int, network_ms: float, whole_ms: float) -> dict[str, Any]:
    measured = {name: {"ms": {"median": ms}} for name, ms in (("network", network_ms), ("detections", whole_ms))}
    return {"preset": preset, "compiled": False, "batch": batch, **measured}


def test_copies_and_what_the_host_does_are_no_kernels(script: ModuleType) -> None:
    events = [
        ("aten::conv2d", "CPU"),
        ("cudaLaunchKernel", "CPU"),
        ("cuLaunchKernelEx", "CPU"),
        ("cudaMemcpyAsync", "CPU"),
        ("sm90_xmma_fprop", "CUDA"),
        ("triton_poi_fused_relu_0", "CUDA"),
        ("void at::native::elementwise_kernel", "CUDA"),
        ("Memcpy DtoH (Device -> Pageable)", "CUDA"),
        ("Memset (Device)", "CUDA"),
    ]
    assert script.count_events(events) == {"kernels": 3, "launches": 2}


def test_share_of_the_matrix_rate(script: ModuleType) -> None:
    # 4 images in 20 ms are 200 a second; of 5 GMACs they take 2 x 5e9 x 200 = 2e12 operations a second, a quarter of 8e12.
    rated = script.with_rates(row("lw-v3", 4, 20.0, 25.0), 4, 5_000_000_000, 8e12)
    assert rated["network"]["images_per_second"] == pytest.approx(200)
    assert rated["detections"]["images_per_second"] == pytest.approx(160)
    assert rated["share_of_matrix_rate"] == pytest.approx(0.25)


def test_the_goal_of_1500_images_is_for_its_own_case_only(script: ModuleType) -> None:
    rows = [
        script.with_rates(row("lw-v3", 32, 16.0, 20.0), 32, 10**9, 1e15),  # 1,600 a second with boxes
        script.with_rates(row("retinanet", 32, 8.0, 10.0), 32, 2 * 10**9, 1e15),
    ]
    assert script.verdicts(rows, 800, True)[1].endswith(": 1,600")
    assert "retinanet, batch 32" in script.verdicts(rows, 800, True)[0]
    for size, is_gpu, some in ((640, True, rows), (800, False, rows), (800, True, rows[1:])):
        assert "not run" in script.verdicts(some, size, is_gpu)[1]
