"""The damaged and odd files of the self-check in other programs: Pillow as most scripts use it, torchvision's reader, pycocotools.

``python benchmarks/hostile_peers.py`` prints the table of docs/reliability.md. Each reading runs in a process of its own, since some crash.
"""

import contextlib
import io
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.io import ImageReadMode, read_image

from lw_retinanet.data.images import decode
from lw_retinanet.errors import LwRetinaNetError
from lw_retinanet.jobs.hostile_files import HEIGHT, WIDTH, hostile_images, odd_images


def by_pillow(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def by_torchvision(path: Path) -> np.ndarray:
    return read_image(str(path), ImageReadMode.RGB).permute(1, 2, 0).numpy()


def by_us(path: Path) -> np.ndarray:
    return decode(path)


def outcome(read: Callable[[Path], np.ndarray], path: Path) -> str:
    """``ok``, ``refused``, or ``wrong`` for pixels that are not those of a white image."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            pixels = read(path)
        except (OSError, ValueError, RuntimeError, SyntaxError, LwRetinaNetError, Image.DecompressionBombError):
            return "refused"
    return "ok" if pixels.shape == (HEIGHT, WIDTH, 3) and int(pixels.min()) >= 250 else "wrong"


def images(pool_size: int = 1) -> None:
    folder = Path(tempfile.mkdtemp())
    for kind, files, right in (("damaged", hostile_images(), "refused"), ("odd", odd_images(), "ok")):
        for name, read in (("lw_retinanet", by_us), ("Pillow", by_pillow), ("torchvision", by_torchvision)):
            good, others = 0, []
            for number, (file, content) in enumerate(files.items()):
                path = folder / f"{kind}{number}.bin"
                path.write_bytes(content)
                with multiprocessing.get_context("fork").Pool(pool_size) as pool:
                    try:
                        found = pool.apply_async(outcome, (read, path)).get(timeout=20)
                    except multiprocessing.TimeoutError:
                        found = "crashed or hung"
                good += found == right
                others += [f"{file}: {found}"] if found != right else []
            print(f"{kind} images, {name}: {good} of {len(files)} right; {'; '.join(others)}")


def scores() -> None:
    """Four sets of one or two boxes with perfect detections, or detections that are not numbers, in pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def ap(ids: list[int], box: list[float]) -> float | str:
        boxes = [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": [30 * row, 0, 20, 20], "area": 400, "iscrowd": 0}
            for row, number in enumerate(ids)
        ]
        found = [{"image_id": 1, "category_id": 1, "bbox": box or one["bbox"], "score": 0.9} for one in boxes]
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {"images": [{"id": 1, "width": 99, "height": 99}], "categories": [{"id": 1, "name": "a"}], "annotations": boxes}
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return round(float(evaluation.stats[0]), 4)

    nan = float("nan")
    print("pycocotools, perfect detections, annotation id 0:", ap([0], []))
    print("pycocotools, perfect detections, ids 0 and 1:", ap([0, 1], []))
    print("pycocotools, perfect detections, the same id twice:", ap([5, 5], []))
    print("pycocotools, a detection of NaN:", ap([1], [nan, nan, nan, nan]))


if __name__ == "__main__":
    images()
    scores()
