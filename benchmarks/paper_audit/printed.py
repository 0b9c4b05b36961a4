"""The paper's own numbers, as printed. Li & Ren, Light-Weight RetinaNet for Object Detection (2019)."""

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")

# Table 3: the six metrics in per cent, GFLOPs, ratio.
SCALING = {
    800: (35.7, 55.0, 38.5, 18.9, 38.9, 46.3),
    700: (35.1, 54.2, 37.7, 18.0, 39.3, 46.4),
    600: (34.3, 53.2, 36.9, 16.2, 37.4, 47.4),
}
LIGHT = {
    "lw-v1": (35.4, 54.4, 38.2, 18.3, 38.7, 46.0),
    "lw-v2": (35.1, 54.3, 37.7, 17.9, 38.4, 45.7),
    "lw-v3": (34.6, 53.1, 37.3, 15.7, 38.7, 44.6),
}
SCALING_GFLOPS = {800: 156, 700: 119, 600: 88}
SCALING_RATIOS = {700: "1.3x", 600: "1.8x"}
LIGHT_GFLOPS = {"lw-v1": 135, "lw-v2": 114, "lw-v3": 89}
LIGHT_RATIOS = {"lw-v1": "1.1x", "lw-v2": "1.4x", "lw-v3": "1.8x"}

# Table 1: AP, loss of AP, GFLOPs, reduction in per cent.
BBOX = {"bbox-v1": (34.3, 1.4, 135, 15.4), "bbox-v2": (35.6, 0.1, 135, 6.4), "bbox-v3": (35.1, 0.6, 89, 15.4)}

# Section 1 and 3.1: the share of D3 in per cent.
D3_SHARE = 48


def titled(name: str) -> str:
    """``LW-v1`` for ``lw-v1``, ``Table 1, v1`` for ``bbox-v1``."""
    family, version = name.split("-")
    return f"LW-{version}" if family == "lw" else f"Table 1, {version}"
