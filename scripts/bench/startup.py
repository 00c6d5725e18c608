"""How long every forcereg command takes beyond `import torch`, and training until its first iteration.

    python scripts/bench/startup.py [--mnist IDX_DIR] [--rounds 3] [--quick] [--json FILE]

Each command runs on a tiny input of its own (one iteration, a net of four small layers) in fresh processes, in turn
with processes that do nothing but `import torch`: medians over the rounds, and the differences. Train's way to its
first iteration is measured by the clock of its process, from behind `import torch` to the line "Iteration 0 ...,
loss = ...", for the README's LeNet on an LMDB of 60,000 images (MNIST's, or random ones): once without the test
before iteration 0, once with it and its time taken off. Files are in the system's cache, Python files compiled.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from table import Figure, rows, write_figures

HELP, COMMAND, FIRST = 0.3, 1.0, 1.5
"""Goals in seconds."""
IMAGES = 60_000
HERE = Path(__file__).resolve().parent
LENET = "examples/mnist/lenet_force_solver.prototxt"
W, S = "net_iter_1.caffemodel.h5", "solver.prototxt"

NET = """
name: "small"
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "small_lmdb" batch_size: 8 } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 8 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" test_iter: 1 test_interval: 1 base_lr: 0.01 momentum: 0.9 lr_policy: "fixed" display: 1
max_iter: 1 snapshot_prefix: "net" snapshot_format: HDF5 solver_mode: CPU force_decay: 0.001 random_seed: 1
"""

SET_UP = (
    ("train", "--solver", S, "--set", "net=zeros.prototxt", "--set", "snapshot_prefix=zeros"),
    ("train", "--solver", S),
    ("decompose", "--snapshot", W, "--ranks", "2,2", "--out", "low"),
    ("split-groups", W, "--out", "split"),
    ("deploy", "net.prototxt", "-o", "deploy.prototxt"),
    ("convert", W, "use.caffemodel"),
)
USE = ("--model-def", "deploy.prototxt", "--pretrained-model", "use.caffemodel", "--channel-swap", "")
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("--solver", S, "--set", "snapshot_prefix=out{}"),
    "finetune": ("--model", "low.prototxt", "--weights", "low.caffemodel.h5", "--solver", S),
    "test": ("--model", "net.prototxt", "--weights", W, "--iterations", "1"),
    "confusion": ("--model", "net.prototxt", "--weights", W),
    "time": ("--model", "net.prototxt", "--iterations", "1"),
    "device_query": (),
    "decompose": ("--snapshot", W, "--ranks", "2,2", "--out", "low{}"),
    "ranks": (W,),
    "sensitivity": (W, "--solver", S, "--error", "0.2", "-o", "sensitivity{}.svg"),
    "prune": ("--solver", S, "--weights", W, "--target", "0.5", "--only-layers", "conv1", "--out", "pruned{}"),
    "filters": (W, "--layer", "conv1", "--basis", "-o", "basis{}.svg"),
    "frontier": (W, "--solver", S, "--ranks", "2,2", "--latency", "no", "-o", "frontier{}.svg"),
    "shrink": ("zeros_iter_1.caffemodel.h5", "--out", "shrunk{}"),
    "split-groups": (W, "--out", "split{}"),
    "merge-groups": ("split.caffemodel.h5", "--out", "merged{}"),
    "deploy": ("net.prototxt", "-o", "use{}.prototxt"),
    "export": (W, "-o", "net{}.onnx", "--no-verify"),
    "convert": (W, "net{}.caffemodel"),
    "data": ("mean", "small_lmdb", "mean{}.binaryproto"),
    "check": (S,),
    "summary": ("net.prototxt",),
    "draw": ("net.prototxt", "net{}.txt"),
    "layers": (),
    "sweep": ("--solver", S, "--set", "base_lr=0.01", "--out", "sweep{}"),
    "tune": ("--solver", S, "--goal", "macs<=1", "--trials", "1", "--out", "tune{}"),
    "lr-find": ("--solver", S, "--iterations", "10"),
    "plot": ("train.log", "-o", "curves{}.svg"),
    "report": (W, "--no-score", "--passes", "0", "-o", "report{}.html"),
    "classify": (*USE, "--images-dim", "12,12", "image.png", "scores{}.npy"),
    "detect": (*USE, "--crop-mode", "list", "--context-pad", "2", "windows.csv", "scores{}.csv"),
    "python": ("hello.py",),
    "new": ("lenet", "new{}"),
    "configs": (),
}
"""Command -> arguments with which it has little to do; {} is another number in every round."""
NEEDS = {
    **dict.fromkeys(("sensitivity", "filters", "frontier", "sweep", "plot", "report"), "matplotlib"),
    "tune": "optuna",
    "export": "onnx",
}
"""Command -> what it needs beside forcereg itself."""


# -- the child that measures train's first iteration by its own clock


class Clock:
    """Takes the place of standard error; when each line was written, in seconds from `start`."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.lines: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        now = time.perf_counter() - self.start
        self.lines += [(now, line) for line in text.splitlines() if line]
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def first_iteration(lines: Sequence[tuple[float, str]]) -> float:
    """Seconds until the loss of iteration 0 was told, without those of the test before it."""
    tested = [now for now, line in lines if "Testing net" in line or "Test net output" in line]
    told = next(now for now, line in lines if "] Iteration 0 (" in line)
    before = [now for now in tested if now < told]
    return told - (before[-1] - before[0] if before else 0)


def probe() -> None:
    """Runs the command in sys.argv and prints its first iteration's seconds."""
    import torch  # noqa: F401

    clock = Clock(time.perf_counter())
    sys.stderr = clock
    from forcereg.__main__ import main as forcereg

    try:
        forcereg(sys.argv[1:])
    except SystemExit as end:
        if end.code:
            sys.exit("\n".join(line for _, line in clock.lines[-1:]))
    print(first_iteration(clock.lines))


# -- the measurements


def timed(args: Sequence[str], folder: Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds that a Python process with these arguments takes; SystemExit if it fails."""
    hidden = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    places = (str(HERE), str(HERE.parents[1]), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(args)}: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    return seconds, done


def set_up(folder: Path, mnist: str | None) -> None:
    """Writes nets, solvers, data, and what the commands before would have left."""
    import numpy as np
    from PIL import Image

    from forcereg.data.convert import write_set
    from forcereg.data.idx import convert_mnist
    from forcereg.system.shipped import configs_dir

    compileall.compile_dir(str(HERE.parents[1] / "forcereg"), quiet=2)
    examples = folder / Path(LENET).parent
    shutil.copytree(configs_dir() / Path(LENET).parent, examples)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (IMAGES, 1, 28, 28), np.uint8), random.integers(0, 10, IMAGES)
    if mnist:
        convert_mnist(Path(mnist), examples)
    else:
        for name, count in (("mnist_train_lmdb", IMAGES), ("mnist_test_lmdb", IMAGES // 6)):
            write_set(examples / name, images[:count], labels[:count], 8, force=False)
    write_set(folder / "small_lmdb", images[:64, :, :12, :12], labels[:64], 8, force=False)
    (folder / "net.prototxt").write_text(NET)
    # filters that are zero and aren't learned
    zeros = NET.replace('group: 2 weight_filler { type: "xavier" }', "")
    zeros = zeros.replace('name: "conv2"', 'name: "conv2" param { lr_mult: 0 }')
    (folder / "zeros.prototxt").write_text(zeros)
    (folder / S).write_text(SOLVER)
    (folder / "hello.py").write_text("import caffe\n")
    (folder / "windows.csv").write_text("filename,ymin,xmin,ymax,xmax\nimage.png,0,0,9,9\n")
    Image.fromarray(random.integers(0, 256, (12, 12), np.uint8)).save(folder / "image.png")
    for args in SET_UP:
        _, done = timed(["-m", "forcereg", *args], folder)
        if args[0] == "train":
            (folder / "train.log").write_text(done.stderr)


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """What was run -> its seconds, round by round."""
    train = ("train", "--solver", LENET, "--max-iter", "1", "--set", "display=1", "--set", "snapshot=0",
             "--set", "snapshot_after_train=false", "--set", "solver_mode=CPU")  # fmt: skip
    probed = ["-c", "from startup import probe; probe()", *train]
    untested = ("--set", "test_initialization=false", "--set", "test_interval=1000")
    found: dict[str, list[float]] = {"import torch": [], "--help": []}
    lacks = {name for name, module in NEEDS.items() if importlib.util.find_spec(module) is None}
    for number in range(rounds):
        for name, args in COMMANDS.items():
            if name in lacks:
                continue
            found["import torch"].append(timed(["-c", "import torch"], folder)[0])
            found["--help"].append(timed(["-m", "forcereg", "--help"], folder)[0])
            given = [arg.format(number) for arg in args]
            found.setdefault(name, []).append(timed(["-m", "forcereg", name, *given], folder)[0])
        for name, more in (("first", untested), ("first, tested", ())):
            found.setdefault(name, []).append(float(timed([*probed, *more], folder)[1].stdout))
    return found


def above(found: dict[str, list[float]]) -> dict[str, float]:
    """Command -> median of its seconds above those of the `import torch` that ran just before."""
    names = [name for name in COMMANDS if name in found]
    differences = {}
    for place, name in enumerate(names):
        before = found["import torch"][place :: len(names)]
        differences[name] = statistics.median(own - torch for own, torch in zip(found[name], before, strict=True))
    return differences


def figures(found: dict[str, list[float]]) -> list[Figure]:
    """What goes into the common table: of the commands the slowest."""
    more = above(found)
    slowest = max(more, key=lambda name: more[name])
    median = {name: statistics.median(values) for name, values in found.items()}
    return [
        Figure("start", "forcereg --help", median["--help"], HELP, "s"),
        Figure("start", f"any command above import torch (most: {slowest})", more[slowest], COMMAND, "s"),
        Figure("start", "train: import torch to iteration 0, MNIST", median["first"], FIRST, "s"),
        Figure("start", "the same with a test before, its time off", median["first, tested"], FIRST, "s"),
    ]


def report(found: dict[str, list[float]]) -> None:
    """Every command's line, then the figures with their goals."""
    median = {name: statistics.median(values) for name, values in found.items()}
    print(f"{'':14}{'seconds':>9}{'above import torch':>20}{'goal':>10}")
    print(f"{'import torch':14}{median['import torch']:9.2f}")
    for name, more in above(found).items():
        verdict = Figure("", name, more, COMMAND, "s").verdict
        print(f"{name:14}{median[name]:9.2f}{more:+20.2f}{f'<= {COMMAND:g}':>10}  {verdict}")
    for name, module in NEEDS.items():
        if name not in found:
            print(f"{name:14} not measured: it needs {module}")
    print()
    print("\n".join(rows(figures(found))))


def main() -> None:
    """Runs the measurements and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of MNIST idx files (default: random images of that number and size)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, to see that everything runs")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    mnist = str(Path(args.mnist).resolve()) if args.mnist else None
    with tempfile.TemporaryDirectory() as folder:
        set_up(Path(folder), mnist)
        found = measure(Path(folder), 1 if args.quick else args.rounds)
    from contest import machine

    where = machine()
    print(where)
    report(found)
    if args.json:
        write_figures(args.json, figures(found), {"seconds": found, "above": above(found)}, where)


if __name__ == "__main__":
    main()
