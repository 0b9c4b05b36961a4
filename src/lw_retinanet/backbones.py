"""Names of the backbones that this package can build. It imports nothing, so that settings and help can list them without delay."""

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2")
TIMM = "timm:"
BACKBONES_IN_WORDS = f"{', '.join(BACKBONES)}, or {TIMM}NAME with the extra timm"


def is_backbone(name: str) -> bool:
    """Whether the name is one of ours, or names a network of timm; whether timm has that network is not checked."""
    return name in BACKBONES or (name.startswith(TIMM) and len(name) > len(TIMM))
