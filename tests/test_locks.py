import errno
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lw_retinanet.errors import DiskFullError, InUseError, LwRetinaNetError, OutputError
from lw_retinanet.locks import lock_file

HOLDER = """
import sys
from pathlib import Path
from lw_retinanet.locks import lock_file
with lock_file(Path(sys.argv[1]), where="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_it_and_its_death_frees_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InUseError, match=r"^the shard is in use by another process; wait for it, or "),
            lock_file(file, where="the shard"),
        ):
            pass
        holder.kill()
    with lock_file(file, where="the shard"), pytest.raises(InUseError), lock_file(file, where="the shard"):
        pass
    with lock_file(file, where="the shard", waits=True):  # an error inside frees it, too
        pass


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (OSError(errno.EACCES, "Permission denied"), OutputError, "Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError, "make room"),
        (OSError(errno.ENOLCK, "No locks available"), OutputError, "No locks available"),
    ],
)
def test_a_folder_that_cannot_be_locked_is_told(
    fault: Exception, error: type[LwRetinaNetError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise fault

    monkeypatch.setattr(FileLock, "_acquire", fail)
    with pytest.raises(error, match=message), lock_file(tmp_path / ".lock", where="the folder"):
        pass
