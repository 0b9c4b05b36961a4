"""The page in a real browser."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.serving.conftest import Served, image_file, serving

from lw_retinanet.exporting.load import open_detector

pytestmark = pytest.mark.browser
SWITCHES = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
ARGUMENTS = [f"--{switch}" for switch in SWITCHES.split()]


@pytest.fixture(scope="module")
def served(model_file: Path) -> Iterator[Served]:
    with serving(lambda: open_detector(model_file), score=0.1) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """The page with its model loaded; an error in it or a request to another host fails the test."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True)
    page = context.new_page()
    troubles: list[str] = []
    address = f"http://127.0.0.1:{served.port}/"
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: troubles.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None)
    page.goto(address)
    page.get_by_text("2 classes").wait_for()
    yield page
    context.close()
    assert not troubles


def choose(page: Any, seed: int = 1) -> None:
    page.set_input_files("#file", {"name": "noise.png", "mimeType": "image/png", "buffer": image_file(seed)})
    page.get_by_text("Answered in").wait_for()


def count(page: Any) -> int:
    return int(page.locator("#list li").count())


def test_boxes_threshold_and_classes_without_a_new_request(page: Any, served: Served) -> None:
    choose(page)
    expected = json.loads(served.post(image_file(1), "?score=0.05").body)["detections"]
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.evaluate("() => { const t = document.getElementById('threshold'); t.value = 0.05; t.dispatchEvent(new Event('input')); }")
    assert count(page) == len(expected) > 0
    page.focus("#threshold")
    page.keyboard.press("End")
    assert page.locator("#threshold-value").inner_text() == "0.95"
    assert count(page) == sum(one["score"] >= 0.95 for one in expected)
    page.keyboard.press("Home")
    name = expected[0]["name"]
    page.get_by_role("checkbox", name=name).uncheck()
    assert count(page) == sum(one["name"] != name for one in expected)
    assert not requests


def test_what_leaves_the_page(page: Any) -> None:
    choose(page)
    page.focus("#threshold")
    page.keyboard.press("Home")
    page.get_by_role("button", name="Copy COCO JSON").click()
    page.get_by_text("Copied").wait_for()
    rows = json.loads(page.evaluate("() => navigator.clipboard.readText()"))
    assert len(rows) == count(page)
    assert sorted(rows[0]) == ["bbox", "category_id", "image_id", "score"]
    assert {row["category_id"] for row in rows} <= {3, 7}
    with page.expect_download() as download:
        page.get_by_role("button", name="Download image").click()
    assert download.value.suggested_filename == "noise-detections.png"
    assert Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).size == (64, 48)


def test_examples_paste_drop_and_bad_files(page: Any) -> None:
    page.get_by_role("button", name="Example 2").click()
    page.get_by_text("Answered in").wait_for()
    assert page.locator("#canvas").get_attribute("aria-label").startswith("example-2.jpg")
    for event, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """async ([event, holder, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], event + ".png", { type: "image/png" }));
                const kind = event === "paste" ? ClipboardEvent : DragEvent;
                document.dispatchEvent(new kind(event, { [holder]: data, bubbles: true, cancelable: true }));
            }""",
            [event, holder, list(image_file(2))],
        )
        page.wait_for_function(f"() => document.getElementById('canvas').ariaLabel.startsWith('{event}.png: ')")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.get_by_text("no image that the browser can show").wait_for()


def test_an_answer_that_comes_late_leaves_the_newer_message(page: Any) -> None:
    held: list[Any] = []
    page.route("**/detect*", lambda route: held.append(route))  # playwright marks handlers, and a bound method cannot be marked
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": image_file(1)})
    page.get_by_text("Looking with").wait_for()
    page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": b"nothing"})
    message = page.get_by_text("no image that the browser can show")
    message.wait_for()
    held[0].continue_()
    page.locator("#copy:enabled").wait_for()
    assert message.is_visible()


def test_narrow_screens_need_no_sideways_scrolling(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    choose(page)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page: Any) -> None:
    choose(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("main button, main input")].filter((part) =>
            !(part.textContent.trim() || part.labels?.length || part.querySelector("img[alt]"))).map((part) => part.outerHTML)"""
    )
    assert nameless == []
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.type"))
    assert {"file", "camera", "threshold", "copy", "download", "list", "radio", "checkbox"} <= reached


def test_a_strict_policy(served: Served) -> None:
    policy = served.request("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
