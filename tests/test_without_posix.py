"""What only POSIX has is not needed: locks, signals, processor affinity and load have fallbacks. (Windows itself is not tested.)"""

import subprocess
import sys
from pathlib import Path

WITHOUT_POSIX = """
import asyncio, multiprocessing, os, signal, sys
import torch, torchvision  # they may use what there is
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty"):
    sys.modules[name] = None
for name in ("SIGKILL", "SIGCHLD", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "SIGPIPE"):
    delattr(signal, name)
for name in ("fork", "killpg", "getpgid", "setsid", "getloadavg", "sched_getaffinity", "sched_setaffinity", "uname", "getuid"):
    delattr(os, name)
"""

EVERYTHING = """
import importlib, pkgutil, warnings
import lw_retinanet
from lw_retinanet.errors import MissingExtraError
warnings.simplefilter("ignore")  # the lock says that it is a plain file
for module in pkgutil.walk_packages(lw_retinanet.__path__, "lw_retinanet."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:  # of an extra that is not installed
            assert not str(error.name).startswith("lw_retinanet"), error
            assert error.name not in ("fcntl", "resource", "pwd", "grp", "termios", "tty"), (module.name, error)
        except MissingExtraError:
            pass
from pathlib import Path
from lw_retinanet.benchmarking.machine import available_cpus, machine, pinned_threads
from lw_retinanet.data.read_batches import _begin_worker
from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import RunFolderError
from lw_retinanet.stopping import SIGNALS, stopping
from lw_retinanet.training.run_folder import locked

assert [signal.Signals(number).name for number in SIGNALS] == ["SIGINT", "SIGTERM"]
assert available_cpus() == list(range(os.cpu_count()))
with pinned_threads(1) as threads:
    assert threads == 1
assert machine(torch.device("cpu"))["load_before"] is None
folder = Path(sys.argv[1])
with locked(folder / "locked"):
    try:
        with locked(folder / "locked"):
            raise SystemExit("locked twice")
    except RunFolderError:
        pass
data = make_sample(folder / "data", num_train=2, num_val=1, size=64)
small = {"model": {"backbone": "mobilenet_v2", "head_width": 16}, "data": {"image_size": 64, "workers": 0}}
with stopping():
    run = lw_retinanet.train(
        data, model="lw-v3", config=small, out=folder / "run", train={"steps": 1, "batch_size": 2, "precision": "fp32"}, device="cpu"
    )
assert lw_retinanet.report(run.folder).page.is_file()
assert len(lw_retinanet.predict(run.folder, data / "images", device="cpu")) == 3
_begin_worker(torch.zeros(1, dtype=torch.int64), 0)  # last: it ignores signals
print("done")
"""


def test_a_run_without_posix(tmp_path: Path) -> None:
    call = [sys.executable, "-c", WITHOUT_POSIX + EVERYTHING, str(tmp_path)]
    run = subprocess.run(call, capture_output=True, text=True, check=False, timeout=500)
    assert run.stdout.splitlines()[-1:] == ["done"], run.stdout + run.stderr
