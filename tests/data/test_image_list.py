from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.image_list import ImageList, ShardRows, read_listed
from lw_retinanet.errors import DataError, ImageError, MissingExtraError

pytest.importorskip("fsspec")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
FILES = ["a.jpg", "some, thing.jpg", "späß.jpg", "s3://bucket/a.jpg"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("\n".join(FILES).encode(), "text"),
        ("﻿".encode() + "\r\n".join(FILES).encode() + b"\r\n", "text"),
        ('id,file\n1,a.jpg\n2,"some, thing.jpg"\n3,späß.jpg\n4,s3://bucket/a.jpg\n'.encode(), ","),
        ("file;id\na.jpg;1\nsome, thing.jpg;2\nspäß.jpg;3\ns3://bucket/a.jpg;4".encode(), ";"),
    ],
)
def test_text_and_csv_are_told_apart_by_their_first_line(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(content)
    images = ImageList.open(str(tmp_path / "list"))
    assert images.kind == kind
    assert list(images.rows()) == FILES


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_by_uri_is_read_by_its_column(kind: object, tmp_path: Path) -> None:
    path = tmp_path / "list"
    parquet.write_table(pa.table({"file": pa.array([*FILES, None]).cast(kind), "other": [1, 2, 3, 4, 5]}), path)
    images = ImageList.open(path.as_uri())
    assert (images.kind, images.num_rows) == ("parquet", 5)
    assert list(images.rows()) == [*FILES, ""]


def test_rows_that_are_not_used_are_counted(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a.jpg\n\nb.jpg\na.jpg\n \n\xff\xfe.jpg\na.jpg\n")
    rows = ShardRows(images=ImageList.open(str(tmp_path / "list.txt")), shard=0, shards=1)
    for _ in range(2):  # a second reading counts anew
        assert list(rows) == ["a.jpg", "b.jpg"]
        assert rows.counts == {"repeated": 2, "empty": 2, "unreadable": 1}
    (tmp_path / "list.csv").write_text("id,file\n1,a.jpg\n2\n\n3,\n4,b.jpg\n")
    rows = ShardRows(images=ImageList.open(str(tmp_path / "list.csv")), shard=0, shards=1)
    assert list(rows) == ["a.jpg", "b.jpg"]
    assert rows.counts == {"repeated": 0, "empty": 2, "unreadable": 1}  # a row without a place for the file is not readable


def test_shards_share_all_images_about_evenly(tmp_path: Path) -> None:
    names = [f"images/{number}.jpg" for number in range(2000)]
    (tmp_path / "list.txt").write_text("\n".join([*names, *names]))
    images = ImageList.open(str(tmp_path / "list.txt"))
    shards = [list(ShardRows(images=images, shard=shard, shards=4)) for shard in range(4)]
    assert sorted(name for shard in shards for name in shard) == sorted(names)
    assert all(400 < len(shard) < 600 for shard in shards)  # 500 on average, with a standard deviation of 19
    assert all(shard == [name for name in names if name in set(shard)] for shard in shards)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b"", "is empty; give text with a path a line"),
        ("list.txt", b"\xef\xbb\xbf", "is empty; give text with a path a line"),
        ("list.txt", b"\x89PNG\0\0", "is no list of images"),
        ("list.csv", b"path,label\na.jpg,1\n", r"has no column file \(its first line: path, label\); name the column file"),
        ("list.parquet", b"PAR1 and nothing", "damaged Parquet file"),
    ],
)
def test_what_is_no_list_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        ImageList.open(str(tmp_path / name))


def test_lists_that_are_not_there_and_columns_of_another_type_are_refused(tmp_path: Path) -> None:
    for where in (str(tmp_path / "none.txt"), (tmp_path / "none.txt").as_uri(), "nonsense://a/b"):
        with pytest.raises(DataError, match="check the path"):
            ImageList.open(where)
    with pytest.raises(DataError, match="is no file"):
        ImageList.open(str(tmp_path))
    parquet.write_table(pa.table({"path": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no column file \(it has path\)"):
        ImageList.open(str(tmp_path / "a.parquet"))
    parquet.write_table(pa.table({"file": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="the column file holds int64; write it as text"):
        ImageList.open(str(tmp_path / "b.parquet"))


def test_images_are_read_by_path_and_by_uri(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5), (9, 9, 9)).save(tmp_path / "a.png")
    for file in (str(tmp_path / "a.png"), "a.png", (tmp_path / "a.png").as_uri()):
        np.testing.assert_array_equal(read_listed(file, folders=[tmp_path], max_pixels=100), np.full((5, 7, 3), 9, np.uint8))
    for file in ("none.png", (tmp_path / "none.png").as_uri(), "x" * 5000, "a\0b", "nonsense://a", str(tmp_path)):
        with pytest.raises(ImageError):
            read_listed(file, folders=[tmp_path], max_pixels=100)
    with pytest.raises(ImageError, match="more than the limit"):
        read_listed("a.png", folders=[tmp_path], max_pixels=10)


def test_a_missing_package_for_a_kind_of_uri_is_named_rather_than_a_failure_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", missing)
    with pytest.raises(MissingExtraError, match="Install s3fs to access S3; pip install the package"):
        read_listed("s3://bucket/a.jpg", folders=[], max_pixels=100)


@pytest.mark.parametrize("kind", ["pages", "text"])
def test_a_parquet_list_whose_rows_are_damaged_is_refused(kind: str, tmp_path: Path) -> None:
    """Its schema is whole, so that it shows only where rows are read."""
    path = tmp_path / "list.parquet"
    names = pa.array([b"a\xff.jpg"], pa.binary()).view(pa.string()) if kind == "text" else pa.array(FILES)
    parquet.write_table(pa.table({"file": names}), path)
    if kind == "pages":
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"\xff" * 30 + content[34:])
    images = ImageList.open(str(path))
    with pytest.raises(DataError, match=r"damaged Parquet file \(.*; write it again"):
        list(images.rows())
