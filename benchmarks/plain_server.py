"""The service that most people would write around torchvision's RetinaNet, to compare ``lw-retinanet serve`` with.

    python benchmarks/plain_server.py MODEL.safetensors [--port 8001]

MODEL is a model file of this package; its weights go into torchvision's own RetinaNet as torchvision ships it, fp32. Each request is
decoded and detected in the thread pool of FastAPI. The load test of both:

    lw-retinanet benchmark --http http://127.0.0.1:8001 --images DIR
"""

import argparse
import io
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from torchvision.transforms.functional import to_tensor

from lw_retinanet.weights.foreign.torchvision_twin import torchvision_twin
from lw_retinanet.weights.model_file import load_model


def build(path: Path) -> FastAPI:
    """The application."""
    loaded = load_model(path)
    model = torchvision_twin(loaded.model).eval()
    names = [category.name for category in loaded.record.categories]
    app = FastAPI()

    def detect(body: bytes) -> dict[str, Any]:
        image = Image.open(io.BytesIO(body)).convert("RGB")
        with torch.inference_mode():
            found = model([to_tensor(image)])[0]
        keep = found["scores"] > 0.3
        rows = zip(found["boxes"][keep].tolist(), found["scores"][keep].tolist(), found["labels"][keep].tolist(), strict=True)
        detections = [{"box": box, "score": score, "label": label, "name": names[label]} for box, score, label in rows]
        return {"width": image.width, "height": image.height, "detections": detections}

    @app.post("/detect")
    async def route(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(detect, await request.body())

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8001)
    arguments = parser.parse_args()
    uvicorn.run(build(arguments.model), port=arguments.port, access_log=False, log_level="warning")
