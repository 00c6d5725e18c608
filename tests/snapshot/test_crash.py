"""A process that is killed, or a disk that is full, while a snapshot is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcereg.snapshot import read_model, read_state, write_model, write_state
from tests.nursery import Nursery

COMMON = """
import json, os, random, resource, signal, sys, time
import numpy as np
from forcereg.errors import ForceregError
from forcereg.schema import NetParameter
from forcereg.snapshot import read_model, read_state, write_model, write_state

def write(kind, path, n):
    values = np.full((300 + n % 7, 1000), n, np.float32)  # other sizes, so that a torn file cannot pass
    layers, attrs = {"ip": {0: values}, "relu": {}}, {"forcereg_version": str(n)}
    if "model" in kind:
        write_model(path, layers, attrs=attrs, net=NetParameter(layer=[{"name": "ip"}]) if "binary" in kind else None)
    else:
        write_state(path, n, 0, "x", [values], {"cursor": n}, "binary" in kind)

def check(kind, path):
    if "model" in kind:
        file = read_model(path)
        n, values = int(file.attrs["forcereg_version"]), file.layers["ip"][0]
    else:
        file = read_state(path)
        n, values = file.extra["cursor"], file.history[0]
    assert values.shape == (300 + n % 7, 1000) and (values == n).all()
    return n
"""

KILLED = """
kind, path = sys.argv[1:]
write(kind, path, 0)
start = time.perf_counter()
for n in range(1, 6):
    write(kind, path, n)
one_write = (time.perf_counter() - start) / 5
moments = random.Random(1)
seen, left, number = set(), 0, 10
while number < 35 or len(seen) < 3 or not left:  # until some kills hit a write and some came after one
    number += 1
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        os.write(go, b"x")
        while True:
            write(kind, path, number)
    os.read(ready, 1)
    time.sleep(one_write * moments.uniform(0, 2 + number / 35))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(ready), os.close(go)
    seen.add(check(kind, path))
    for name in os.listdir(os.path.dirname(path)):
        if name != os.path.basename(path):
            assert name.startswith("." + os.path.basename(path)) and name.endswith(".tmp"), name
            os.unlink(os.path.join(os.path.dirname(path), name))
            left += 1
print(json.dumps({"kills": number - 10}))
"""

FULL = """
kind, path = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
try:
    write(kind, path, 7)
except ForceregError as exc:
    print(json.dumps({"line": str(exc), "exit_code": exc.exit_code}))
"""


def run(script: str, kind: str, path: Path, nursery: Nursery) -> Any:
    """What the script prints, from JSON; it runs in a process of its own."""
    done = nursery.run("-c", COMMON + script, kind, path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["model", "state", "binary-model", "binary-state"])
def test_a_kill_never_leaves_half_a_file(kind: str, tmp_path: Path, nursery: Nursery) -> None:
    assert run(KILLED, kind, tmp_path / "a.h5", nursery)["kills"] >= 25


@pytest.mark.parametrize("kind", ["model", "state", "binary-model", "binary-state"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(kind: str, tmp_path: Path, nursery: Nursery) -> None:
    path = tmp_path / "a.h5"
    if "model" in kind:
        write_model(path, {"ip": {0: np.ones((2, 3))}})
    else:
        write_state(path, 3, 0, "x", [np.ones((2, 3))])
    old = path.read_bytes()
    found = run(FULL, kind, path, nursery)
    limit = "file too large; raise the file size limit (`ulimit -f`) or write elsewhere"
    assert found == {"line": f"cannot write {path}: {limit}", "exit_code": 1}
    assert os.listdir(tmp_path) == ["a.h5"]
    assert path.read_bytes() == old
    (read_model if "model" in kind else read_state)(path)
