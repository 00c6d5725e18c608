"""The interpreter ends while sets are still being decoded, on every way out: no thread of ours aborts the process."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forcereg.system import background
from tests.data.lmdbs import encoded, put_lmdb
from tests.long_forms import Rounds
from tests.nursery import Nursery
from tests.solver.nets import write_solver

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
SETS, RECORDS = 2, 600
"""More records than are decoded while a run of one iteration lasts."""

LAYER = """
layer { name: "dN" type: "Data" top: "dataN" top: "labelN"
  data_param { source: "dbN" batch_size: 4 backend: LMDB } }
layer { name: "poolN" type: "Pooling" bottom: "dataN" top: "poolN" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ipN" type: "InnerProduct" bottom: "poolN" top: "ipN"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "lossN" type: "SoftmaxWithLoss" bottom: "ipN" bottom: "labelN" top: "lossN" }
"""

FIRST = """
import atexit, os, sys, threading
from forcereg.system import background

def last():
    if any(isinstance(thread, background.Worker) for thread in threading.enumerate()):
        os._exit(99)

atexit.unregister(background.end_all)
atexit.register(last)  # runs behind the other
atexit.register(background.end_all)
"""
API = f"""{FIRST}
import forcereg
net = forcereg.load_net("net.prototxt", workers=2, budget=BUDGET)
net()
assert all(isinstance(thread, background.Worker) for thread in threading.enumerate()[1:])
keep = [[i] for i in range(200_000)]  # the interpreter's end takes its time
keep.append(keep)
"""
COMMAND = f"{FIRST}from forcereg.__main__ import main; main(['train', '--solver', 'solver.prototxt', *sys.argv[1:]])"

WAYS: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "command": (0, COMMAND, ()),
    "command-with-curves": (0, COMMAND, ("--log-dir", "curves")),
    "command-that-fails": (1, COMMAND, ("--weights", "missing")),
    "end": (0, API.replace("BUDGET", "1 << 28"), ()),
    "streamed": (0, API.replace("BUDGET", "1"), ()),
    "exception": (1, API.replace("BUDGET", "1 << 28") + "1 / 0", ()),
    "exit": (3, API.replace("BUDGET", "1 << 28") + "sys.exit(3)", ()),
    "interrupt": (-2, API.replace("BUDGET", "1 << 28") + "raise KeyboardInterrupt", ()),
}
"""Exit code, program, arguments."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """With all modules loaded: a run takes a tenth of a second."""
    with Nursery("forcereg.solver.loop", "forcereg.solver.signals", "forcereg.data.database", frees=True) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ends")
    record = encoded(Image.fromarray(np.full((128, 128, 3), 77, np.uint8)))
    put_lmdb(root / "db0", ((b"%08d" % i, record) for i in range(RECORDS)))
    for number in range(1, SETS):
        shutil.copytree(root / "db0", root / f"db{number}")
    (root / "net.prototxt").write_text("".join(LAYER.replace("N", str(number)) for number in range(SETS)))
    write_solver(root, 'max_iter: 1 display: 1 snapshot_after_train: false snapshot_prefix: "s"')
    return root


def test_no_thread_aborts_the_process(folder: Path, nursery: Nursery, rounds: Rounds) -> None:
    for _, (code, program, args) in zip(rounds(20, 200), itertools.cycle(WAYS.values()), strict=False):
        done = nursery.run("-c", program, *args, cwd=folder, env=ON_CPU)
        assert done.returncode == code, done.stderr


STUCK = f"""{FIRST}
import signal, time
from forcereg.system.background import Worker
told = threading.Event()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def work():
    told.wait()
    WORK
    print("done", flush=True)

Worker("forcereg-test", work, (), told.set).start()
atexit.register(lambda: print("ends"))
"""


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [("time.sleep(0.3)", 0, "ends\ndone\n"), ("os.kill(os.getpid(), signal.SIGINT); time.sleep(600)", 130, "ends\n")],
    ids=["waited-for", "interrupted"],
)
def test_what_a_thread_is_at_is_waited_for_unless_interrupted(
    work: str, code: int, said: str, nursery: Nursery
) -> None:
    """A decoder that is stuck holds up nobody who insists, and can't abort what ends without it."""
    done = nursery.run("-c", STUCK.replace("WORK", work), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


def test_none_is_started_once_the_interpreter_ends(nursery: Nursery) -> None:
    program = f"""{FIRST}
def last():
    try: background.Worker("late", print, ("ran",), print).start()
    except RuntimeError as error: print(error)
"""
    assert nursery.run("-c", program.replace("(last)", "(lambda: last())")).stdout == "the interpreter is ending\n"


def test_all_threads_are_started_there() -> None:
    """Or by an executor, which joins its own."""
    package = Path(background.__file__).parent
    found = [path.name for path in package.rglob("*.py") if "threading.Thread(" in path.read_text()]
    assert found == []
