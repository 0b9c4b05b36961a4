from lw_retinanet.config import parse_config
from lw_retinanet.jobs.run_results import portable_settings


def test_no_folder_of_this_machine_is_left() -> None:
    config = parse_config(
        {"model": {"backbone_weights": "/home/me/weights/r50.pth"}, "train": {"teacher": "../runs/big/model.safetensors"}}
    )
    values = portable_settings(config)
    assert (values["model"]["backbone_weights"], values["train"]["teacher"]) == ("r50.pth", "model.safetensors")
    assert values["model"]["start"] is None
    assert portable_settings(parse_config({}))["model"]["backbone_weights"] == "none"
