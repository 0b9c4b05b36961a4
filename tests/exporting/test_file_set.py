from pathlib import Path

import pytest

from lw_retinanet.errors import OutputError
from lw_retinanet.exporting.file_set import replacing_pair


def test_xml_and_weights_change_together(tmp_path: Path) -> None:
    path, weights = tmp_path / "small.xml", tmp_path / "small.bin"

    def write(words: str) -> None:
        with replacing_pair(path, weights) as temporary:
            temporary.write_text(words)
            temporary.with_suffix(".bin").write_text(words)

    write("first")
    write("second")
    assert (path.read_text(), weights.read_text()) == ("second", "second")
    path.unlink()
    (path / "in the way").mkdir(parents=True)  # the last rename fails
    with pytest.raises(OutputError):
        write("third")
    assert weights.read_text() == "second"
    weights.unlink()
    with pytest.raises(OutputError):
        write("third")
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.xml"]
