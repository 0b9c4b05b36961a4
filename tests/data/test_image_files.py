from pathlib import Path

import pytest

from lw_retinanet.data.image_files import find_images
from lw_retinanet.errors import InputError


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_find_images_in_folders_patterns_and_files(tmp_path: Path) -> None:
    make_files(tmp_path, "b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.jpg", ".git/d.jpg", "odd[1].jpg", "e.data")
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    folder = [tmp_path / name for name in ("a.png", "b.JPG", "odd[1].jpg", "sub/c.webp")]
    assert find_images([tmp_path]) == folder
    assert find_images([str(tmp_path / "*.png"), tmp_path]) == folder  # each once, in the order of the sources
    assert find_images([tmp_path / "**" / "*"]) == folder
    assert find_images([tmp_path / "*.data"]) == [tmp_path / "e.data"]
    assert find_images([tmp_path / "odd[1].jpg", tmp_path / "notes.txt"]) == [tmp_path / "odd[1].jpg", tmp_path / "notes.txt"]


def test_find_images_follows_a_linked_folder(tmp_path: Path) -> None:
    make_files(tmp_path, "far/away/a.jpg", "near/b.jpg")
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    assert find_images([tmp_path / "near"]) == [tmp_path / "near/b.jpg", tmp_path / "near/link/away/a.jpg"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [("missing.jpg", "no such file"), ("*.tga", "no file matches"), ("empty", "no images"), ("http://a.b/c.jpg", "download")],
)
def test_a_source_without_images_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_files(tmp_path, "good.jpg")
    with pytest.raises(InputError, match=reason) as caught:
        find_images(["good.jpg", source])
    assert str(caught.value).startswith(source)


def test_a_loop_of_links_is_found_and_does_not_hide_its_neighbours(tmp_path: Path) -> None:
    make_files(tmp_path, "a.jpg", "z.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("missing.jpg")
    assert find_images([tmp_path]) == [tmp_path / name for name in ("a.jpg", "loop.jpg", "nowhere.jpg", "z.jpg")]
    assert find_images([tmp_path / "loop.jpg", tmp_path / "a.jpg"]) == [tmp_path / "loop.jpg", tmp_path / "a.jpg"]
