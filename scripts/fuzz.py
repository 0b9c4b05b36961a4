"""Feed damaged input to every reader for a long time, guided by coverage: only errors of this package may leave.

    pip install 'lw-retinanet[fuzz]'
    python scripts/fuzz.py [TARGET ...] [--seconds 3600] [--corpus DIR]

Prints a line for each target with the inputs that were tried and the crashes that were found. Inputs that crash, and the output of the
fuzzer, are left in the corpus folder, with those that added coverage. ``tests/test_fuzz.py`` runs the same targets for seconds.
"""

import argparse
import asyncio
import io
import json
import logging
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Edit = tuple[float, str, bytes]
"""Where (a fraction of the length), what is done there, and with which bytes."""
KINDS = ("insert", "replace", "delete", "repeat", "flip", "cut")
TOKENS = (
    *(b"nan", b"-1", b"0", b"1e309", b"-1e-309", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'""', b"''", b"[[[[", b"\0"),
    *(b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b",", b";", b"\t", b":", b"- ", b"&a ", b"*a", b"<<: ", b"<x>", b"</", b"&#0;"),
    *(b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"../", b"/etc/passwd", b"con", b" ", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"0x10"),
)
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), "", "x", "0", "nan", "\0", "\ud800"),
    *([], {}, [[]], [None], {"": None}, [1, 2, 3, 4], ["a"], "../x.png", "a.png", "b.png", "x" * 5000),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader.

    Args:
        seeds: Good input.
        attempt: Reads some bytes; an error of this package may leave it, and nothing else.
        is_json: Whether the seeds are JSON, whose members may be exchanged.
    """

    seeds: Sequence[bytes]
    attempt: Callable[[bytes], object]
    is_json: bool = False


def edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    """The content with some edits."""
    for place, kind, token in edits:
        at = int(place * len(content))
        rest = content[at:]
        changed = {
            "insert": token + rest,
            "replace": token + rest[len(token) :],
            "delete": rest[len(token) :],
            "repeat": rest[:20] * (1 + len(token)) + rest,
            "flip": bytes(byte ^ (1 << len(token) % 8) for byte in rest[:1]) + rest[1:],
            "cut": b"",
        }
        content = content[:at] + changed[kind]
    return content


def edited_json(content: bytes, edits: Sequence[tuple[float, Any]]) -> bytes:
    """JSON with some of its values exchanged for others."""
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        return content
    for place, value in edits:
        holders = list(_holders(table))
        if not holders:
            break
        holder, key = holders[int(place * (len(holders) - 1))]
        holder[key] = json.loads(json.dumps(value))
    return json.dumps(table).encode()


def _holders(table: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [table]
    while waiting:
        holder = waiting.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()):
            found.append((holder, key))
            waiting.append(value)
    return found


def tried(target: Target, content: bytes) -> bool:
    """Whether the content is taken; False if it is refused.

    Raises:
        Exception: What should not have left the reader, or an error of several lines.
    """
    from lw_retinanet.errors import LwRetinaNetError

    try:
        target.attempt(content)
    except LwRetinaNetError as error:
        _require_one_line(error)
        return False
    return True


def _require_one_line(error: Exception) -> None:
    assert len(str(error).splitlines()) == 1, f"not one line: {error}"


def images(_: Path) -> Target:
    """Bytes of an image."""
    import numpy as np

    from lw_retinanet.data.images import decode
    from lw_retinanet.jobs.hostile_files import hostile_images, odd_images

    def attempt(content: bytes) -> None:
        pixels = decode(content, max_pixels=2**20)
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.ndim == 3, pixels.shape
        assert pixels.shape[2] == 3, pixels.shape

    more = [_image(form) for form in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")]
    return Target(seeds=(*more, *odd_images().values(), *hostile_images().values()), attempt=attempt)


def _image(form: str = "PNG") -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 30, 90)).save(stream, form)
    return stream.getvalue()


def _annotations(folder: Path, file: str, seeds: Sequence[bytes], *, is_json: bool = False) -> Target:
    """A data set of two images in one of whose files the bytes stand."""
    from lw_retinanet.data.check import check
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.errors import LwRetinaNetError
    from lw_retinanet.jobs.train import open_training_data

    place = folder / file
    place.parent.mkdir(parents=True, exist_ok=True)
    images = folder / ("JPEGImages" if file.endswith(".xml") else "images")
    images.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (images / name).write_bytes(_image())

    def attempt(content: bytes) -> None:
        place.write_bytes(content)
        try:
            check(Dataset.open(folder))
        except LwRetinaNetError as error:
            _require_one_line(error)
        open_training_data(folder)

    return Target(seeds=seeds, attempt=attempt, is_json=is_json)


def coco(folder: Path) -> Target:
    """A COCO file."""
    names = ("a.png", "b.png")
    table = {
        "info": {"year": 2020},
        "images": [{"id": number, "file_name": name, "width": 16, "height": 12} for number, name in enumerate(names, start=1)],
        "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 5, 6], "area": 30.0, "segmentation": [[1, 2, 6, 2, 6, 8]]},
            {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 8.5, 4], "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 3, "iscrowd": 1, "segmentation": {"counts": [9, 5, 178], "size": [12, 16]}},
            {"id": 4, "image_id": 2, "category_id": 7, "segmentation": {"counts": "04", "size": [12, 16]}},
        ],
    }
    return _annotations(folder, "train.json", [json.dumps(table).encode()], is_json=True)


def voc(folder: Path) -> Target:
    """The XML of one image."""
    box = "<bndbox><xmin>2</xmin><ymin>1</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    objects = f"<object><name>cat</name><difficult>0</difficult>{box}</object><object><name>dog</name>{box}</object>"
    size = "<size><width>16</width><height>12</height><depth>3</depth></size>"
    text = f"<annotation><folder>x</folder><filename>a.png</filename>{size}{objects}</annotation>"
    target = _annotations(folder, "Annotations/a.xml", [text.encode(), f'<?xml version="1.0" encoding="utf-16"?>{text}'.encode("utf-16")])
    (folder / "Annotations" / "b.xml").write_text(text.replace("a.png", "b.png"))
    return target


def yolo(folder: Path) -> Target:
    """The labels of one image."""
    seeds = (b"0 0.5 0.5 0.25 0.5\n1 0.3 0.3 0.1 0.1\n", b"0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n", b"0 0.5 0.5 0.2 0.2 0.9\n")
    target = _annotations(folder, "labels/a.txt", seeds)
    (folder / "labels" / "b.txt").write_bytes(seeds[0])
    (folder / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat, dog]\n")
    return target


def yolo_yaml(folder: Path) -> Target:
    """The ``data.yaml`` of a YOLO data set."""
    good = b"path: .\ntrain: images\nval: images\nnc: 2\nnames: [no, 08]\n"
    table = {"path": ".", "train": "images", "val": ["images"], "names": {"0": "cat", "1": "dog"}, "nc": 2}
    seeds = [good, b"# a mapping\n" + json.dumps(table).encode(), good + b"kpt_shape: [2, 3]\n"]
    target = _annotations(folder, "data.yaml", seeds)
    (folder / "labels").mkdir(exist_ok=True)
    for name in ("a", "b"):
        (folder / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.5\n1 0.3 0.3 0.1 0.1\n")
    return target


def csv(folder: Path) -> Target:
    """A table of boxes."""
    rows = ("a.png,1,2,9,8,cat", "b.png,0,0,5,5,dog", "b.png,,,,,")
    header = "image,xmin,ymin,xmax,ymax,label"
    seeds = [
        "\n".join([header, *rows]),
        "\n".join(rows[:2]),
        "\n".join([header.replace(",", ";"), *(row.replace(",", ";") for row in rows)]),
    ]
    return _annotations(folder, "boxes.csv", [seed.encode() for seed in seeds])


def settings(folder: Path) -> Target:
    """The settings file of a run."""
    import yaml

    from lw_retinanet.config import Config, load_run_config, parse_config

    file = folder / "config.yaml"

    def attempt(content: bytes) -> None:
        file.write_bytes(content)
        config = parse_config(load_run_config(file)[0], where="it").resolved()
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert parse_config(load_run_config(file)[0]) == config  # what a run writes down, it takes again

    whole = {**Config().resolved().model_dump(mode="json"), "run": {"data": "x", "processes": 2}}
    return Target(
        seeds=[json.dumps(whole).encode(), yaml.safe_dump(whole).encode(), b"train: {epochs: 3}\n"], attempt=attempt, is_json=True
    )


def _model_file(folder: Path) -> Path:
    import torch

    from lw_retinanet.conventions import Conventions, InputRule
    from lw_retinanet.data.records import Category
    from lw_retinanet.heads import PRESETS
    from lw_retinanet.models.build import build
    from lw_retinanet.weights.model_file import make_record, save_model

    torch.manual_seed(0)
    shape: dict[str, Any] = {"backbone": "mobilenet_v2", "width": 16, "norm": "frozen"}
    model = build(PRESETS["lw-v3"], num_classes=2, conventions=Conventions(input=InputRule(size=64)), **shape).eval()
    names = (Category(id=3, name="cat"), Category(id=7, name="dog"))
    save_model(
        folder / "good.safetensors", model, make_record(model, preset="lw-v3", plan=PRESETS["lw-v3"], categories=names, notes={}, **shape)
    )
    return folder / "good.safetensors"


def models(folder: Path) -> Target:
    """The header of a model file, with the record in it as JSON and not as text of JSON."""
    from lw_retinanet.weights.model_file import load_model

    good, file = _model_file(folder).read_bytes(), folder / "model.safetensors"
    size = int.from_bytes(good[:8], "little")
    header, body = json.loads(good[8 : 8 + size]), good[8 + size :]
    header["__metadata__"] = {name: json.loads(value) for name, value in header["__metadata__"].items()}

    def attempt(content: bytes) -> None:
        try:
            table = json.loads(content)
            table["__metadata__"] = {name: json.dumps(value) for name, value in table["__metadata__"].items()}
            content = json.dumps(table).encode()
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            pass
        file.write_bytes(len(content).to_bytes(8, "little") + content + body)
        load_model(file)

    return Target(seeds=[json.dumps(header).encode()], attempt=attempt, is_json=True)


def results(folder: Path) -> Target:
    """Detections that are evaluated."""
    from lw_retinanet.data.records import Category, build_records
    from lw_retinanet.evaluation.coco_metrics import evaluate
    from lw_retinanet.evaluation.detections import read_results

    records = build_records(
        root=folder,
        file_names=["a.png", "b.png"],
        sizes_hw=[(12, 16)] * 2,
        image_of_box=[0, 1],
        boxes_xywh=[(1, 1, 5, 5), (0, 0, 8, 8)],
        labels=[0, 1],
        categories=[Category(id=3, name="cat"), Category(id=7, name="dog")],
    )
    rows = [{"image_id": image, "category_id": category, "bbox": [1, 1, 5, 5], "score": 0.5} for image, category in ((1, 3), (2, 7))]
    detection = {"box": [1, 1, 6, 6], "score": 0.5, "label": 0, "name": "cat", "category_id": 3}
    predicted = {"images": [{"file": "a.png", "width": 16, "height": 12, "detections": [detection]}]}
    file = folder / "detections.json"

    def attempt(content: bytes) -> None:
        file.write_bytes(content)
        evaluate(records, read_results(file, records))

    return Target(seeds=[json.dumps(rows).encode(), json.dumps(predicted).encode()], attempt=attempt, is_json=True)


def lists(folder: Path) -> Target:
    """A list of images for ``predict --manifest``."""
    import pyarrow
    from pyarrow import parquet

    from lw_retinanet.data.image_list import ImageList, ShardRows

    table = folder / "good.parquet"
    parquet.write_table(pyarrow.table({"file": ["a.png", "b.png", None]}), table)
    file = folder / "list"

    def attempt(content: bytes) -> None:
        file.write_bytes(content)
        found = ImageList.open(str(file))
        halves = [list(ShardRows(images=found, shard=shard, shards=2)) for shard in range(2)]
        assert sorted([*halves[0], *halves[1]]) == sorted(ShardRows(images=found, shard=0, shards=1))

    return Target(seeds=[b"a.png\nb.png\n\n", b"id,file\n1,a.png\n2,b.png\n", table.read_bytes()], attempt=attempt)


KINDS_OF_BODY = (
    "image/png",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "application/json",
    "image/*",
    "text/plain",
    "",
    "\xff",
)
PATHS = ("/detect", "/detect?score=0.1", "/detect?score=nan", "/detect?head=full", "/model", "/")


def http(folder: Path) -> Target:
    """The body of a request; the first two bytes choose the path and the type of the content."""
    part = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n%s\r\n--x--\r\n'
    send = _sender(folder)

    def attempt(content: bytes) -> None:
        path, kind = PATHS[sum(content[:1]) % len(PATHS)], KINDS_OF_BODY[sum(content[1:2]) % len(KINDS_OF_BODY)]
        body = content[2:]
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        assert send(head.encode("latin-1") + body, is_whole=True), "no answer"

    seeds = [b"\0\0" + _image(), b"\0\0" + _image("JPEG"), b"\0\1" + part % _image(), b"\1\4" + _image("WEBP"), b'\0\3{"image": 5}']
    return Target(seeds=seeds, attempt=attempt)


def requests(folder: Path) -> Target:
    """Everything that a client sends."""
    image = _image()
    head = b"POST /detect HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: image/png\r\n"
    seeds = [
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        head + b"content-length: %d\r\n\r\n" % len(image) + image,
        head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(image), image),
        b"GET /model HTTP/1.1\r\nhost: a\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ]
    return Target(seeds=seeds, attempt=_sender(folder))


def _sender(folder: Path) -> Callable[..., int]:
    """A function that sends bytes to a service in a thread of this process, and gives the status of the last answer, or 0 without one."""
    from lw_retinanet.exporting.load import open_detector
    from lw_retinanet.serving import server
    from lw_retinanet.serving.settings import ServeSettings

    chosen, model = ServeSettings.model_validate({"port": 0, "head_s": 2, "receive_s": 2}), _model_file(folder)
    ready = threading.Event()

    def be_service() -> None:
        with server.listening_socket(chosen) as listener:
            ports.append(listener.getsockname()[1])
            asyncio.run(server.Running(listener, lambda: open_detector(model), chosen).run(on_ready=ready.set))

    ports: list[int] = []
    threading.Thread(target=be_service, daemon=True).start()
    assert ready.wait(120)

    def send(content: bytes, *, is_whole: bool = False) -> int:
        with socket.create_connection(("127.0.0.1", ports[0]), timeout=60) as client:
            answer = b""
            try:
                client.sendall(content)
                if not is_whole:  # otherwise the service would wait for the rest
                    client.shutdown(socket.SHUT_WR)
                while block := client.recv(1 << 16):
                    answer += block
            except ConnectionError:  # it need not listen to the end
                pass
        statuses = [int(found) for found in re.findall(rb"^HTTP/1\.1 (\d{3}) ", answer, re.MULTILINE)]
        assert not set(statuses) & {500, 501, 502}, answer[:2000]
        return statuses[-1] if statuses else 0

    return send


TARGETS: dict[str, Callable[[Path], Target]] = {
    make.__name__: make for make in (images, coco, voc, yolo, yolo_yaml, csv, settings, models, results, lists, http, requests)
}


def fuzz(name: str, corpus: Path, options: Sequence[str]) -> None:
    """Fuzz one target in this process, until libFuzzer ends it."""
    import atheris

    logging.getLogger("lw_retinanet").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="lw-retinanet-fuzz-"))
    with atheris.instrument_imports(include=["lw_retinanet"]):
        target = TARGETS[name](folder)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def mutated(content: bytes, most: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if target.is_json and dice.random() < 0.5:
            return edited_json(content, [(dice.random(), dice.choice(STRANGE)) for _ in range(dice.randint(1, 3))])[:most]
        if dice.random() < 0.5:
            return edited(content, [(dice.random(), dice.choice(KINDS), dice.choice(TOKENS)) for _ in range(dice.randint(1, 3))])[:most]
        return bytes(atheris.Mutate(content, most))

    atheris.Setup([sys.argv[0], *options], lambda content: tried(target, content), custom_mutator=mutated)
    atheris.Fuzz()


def main() -> int:
    """Fuzz targets one after the other, each in a process of its own; 1 if one crashed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=3600, help="for each target")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="folder for inputs, crashes and logs")
    if sys.argv[1:2] == ["--here"]:  # a child of this program: target, corpus, and what libFuzzer takes
        fuzz(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"unknown: {', '.join(unknown)}")
    crashed = 0
    for name in arguments.targets or TARGETS:
        corpus = arguments.corpus / name
        corpus.mkdir(parents=True, exist_ok=True)
        limits = ["-max_len=30000", "-timeout=120", "-rss_limit_mb=6000", "-detect_leaks=0", f"-artifact_prefix={arguments.corpus}/{name}-"]
        command = [sys.executable, __file__, "--here", name, str(corpus)]
        with (arguments.corpus / f"{name}.log").open("w") as log:
            subprocess.run([*command, f"-max_total_time={arguments.seconds}", *limits, str(corpus)], stderr=log, stdout=log, check=False)
        text = (arguments.corpus / f"{name}.log").read_text(errors="replace")
        counts, crashes = re.findall(r"^#(\d+)", text, re.MULTILINE), text.count("Test unit written to")
        print(
            f"{name}: {max(map(int, counts), default=0):,} inputs, {crashes} crashes, {len(list(corpus.iterdir()))} inputs kept", flush=True
        )
        crashed += crashes
    return int(crashed > 0)


if __name__ == "__main__":
    sys.exit(main())
