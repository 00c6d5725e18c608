"""`forcereg finetune`: the decomposed net under the original's solver."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.errors import UsageError
from forcereg.schema.text import parse_solver, read_solver
from forcereg.solver.replaced import with_net
from tests.commands.conftest import Cli, said
from tests.conftest import RunCli
from tests.solver.nets import IMAGES, write_images, write_solver

SCHEDULE = 'max_iter: 20 snapshot_prefix: "net" snapshot_after_train: true test_iter: 2 test_interval: 10'


@pytest.fixture
def trained(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained net and its decomposition, which is the working directory."""
    monkeypatch.chdir(write_images(tmp_path))
    write_solver(tmp_path, SCHEDULE)
    for args in (("train", "--solver", "solver.prototxt"), ("decompose", "--snapshot", NET, "--ranks", "2")):
        code, _, err = cli(*args)
        assert code == 0, err
    return tmp_path


NET = "net_iter_20.caffemodel.h5"
CUT = ("--model", "net_iter_20_lowrank.prototxt", "--weights", "net_iter_20_lowrank.caffemodel.h5")


def test_finetune(trained: Path, cli: Cli) -> None:
    before = (trained / NET).read_bytes()
    code, _, err = cli("finetune", *CUT, "--solver", "solver.prototxt", "--max-iter", "6", "--set", "base_lr=0.01")
    assert code == 0, err
    assert "Loaded layers: conv_lowrank, conv_linear, bn, scale, ip" in err and "left as initialised" not in err
    assert "Iteration 0, Testing net (#0)" in err
    assert (trained / NET).read_bytes() == before
    tuned = snapshot.read_model(trained / "net_finetuned_iter_6.caffemodel.h5").layers
    start = snapshot.read_model(trained / CUT[-1]).layers
    assert tuned["conv_lowrank"][0].shape == start["conv_lowrank"][0].shape == (2, 1, 3, 3)
    assert (tuned["conv_linear"][0] != start["conv_linear"][0]).any()
    # and on from there, with a prefix of one's own
    state = "net_finetuned_iter_6.solverstate.h5"
    go_on = ("--solver", "solver.prototxt", "--snapshot", state, "--set", "snapshot_prefix=other", "--max-iter", "8")
    code, _, err = cli("finetune", *CUT[:2], *go_on)
    assert code == 0 and (trained / "other_iter_8.caffemodel.h5").exists(), err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(CUT[:2], "--weights is missing: the model that decompose wrote", id="no-weights"),
        pytest.param((*CUT, "--test-model", "net.prototxt"), "has 0 test nets of their own", id="needless-test-net"),
        pytest.param((*CUT, "--snapshot", "x"), "--snapshot and --weights are both given", id="two-starts"),
        pytest.param(("--model", "gone.prototxt", *CUT[2:]), "gone.prototxt", id="no-such-net"),
    ],
)
def test_what_cannot_be(trained: Path, cli: Cli, args: tuple[str, ...], message: str) -> None:
    code, _, err = cli("finetune", *args, "--solver", "solver.prototxt")
    assert code in (1, 2) and message in said(err)


def test_test_nets_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("net", "low", "low_test"):
        (tmp_path / f"{name}.prototxt").write_text(IMAGES)
    text = 'train_net: "net.prototxt" test_net: "net.prototxt" test_iter: 3 base_lr: 0.5 force_decay: 0.1'
    solver = parse_solver(text, "solver.prototxt")
    made = with_net(solver, "low.prototxt", "low_test.prototxt", None).message
    assert (made.net, list(made.test_net), made.HasField("train_net")) == ("low.prototxt", ["low_test.prototxt"], False)
    assert (made.base_lr, made.force_decay, list(made.test_iter)) == (0.5, solver.message.force_decay, [3])
    assert solver.message.train_net == "net.prototxt"
    with pytest.raises(UsageError, match=r"solver.prototxt has 1 test nets of their own \(net.prototxt\)"):
        with_net(solver, "low.prototxt", None, None)


def test_paths_start_where_the_solver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, here = tmp_path / "tree", tmp_path / "here"
    (tree / "snapshots").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    (tree / "net.prototxt").write_text(IMAGES)
    (here / "low.prototxt").write_text(IMAGES)
    made = with_net(read_solver(write_solver(tree, 'snapshot_prefix: "snapshots"')), "low.prototxt", None, "_finetuned")
    assert made.root == tree and made.message.net == str(here / "low.prototxt")
    assert made.message.snapshot_prefix == "snapshots/solver_finetuned"


# -- the force

MIXED = (
    IMAGES.replace(
        'layer { name: "bn"',
        """layer {
  name: "conv2" type: "Convolution" bottom: "conv" top: "conv2" param { lr_mult: 1 force_mult: 1 }
  convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer { name: "bn\"""",
    )
    .replace('bottom: "conv" top: "conv" ', 'bottom: "conv2" top: "conv2" ')
    .replace('bottom: "conv" top: "ip"', 'bottom: "conv2" top: "ip"')
)
"""Two convolutions."""
FORCED = ("--set", "force_decay=0.05")
GO = ("finetune", *CUT, "--solver", "solver.prototxt", "--max-iter", "6", "--log-json", "log.json")
ONE = "No force on conv_lowrank, conv_linear, the parts of decomposed layers (--keep-force: there too); "


def weights(path: str | Path) -> dict[str, np.ndarray]:
    layers = snapshot.read_model(path).layers
    return {f"{name}/{index}": blob for name, blobs in layers.items() for index, blob in blobs.items()}


def equal(one: str, other: str) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def forced_in_log() -> set[str]:
    """The layers whose force was measured."""
    lines = [json.loads(line) for line in Path("log.json").read_text().splitlines()]
    return {one["layer"] for line in lines if line["event"] == "force" and "ratio" in line for one in line["layers"]}


def test_no_force_on_parts_of_chains(trained: Path, cli: Cli) -> None:
    """As with force_decay 0, in a line; with --keep-force it acts."""
    found = {}
    for name, more in {"plain": (), "none": FORCED, "kept": (*FORCED, "--keep-force")}.items():
        code, _, err = cli(*GO, "--set", f"snapshot_prefix={name}", *more)
        assert code == 0, err
        assert (ONE + "nothing else has force_mult, so force_decay is 0" in err) == (name == "none")
        assert "NOTHING IS REGULARIZED" not in err and "the force acts on" not in err
        found[name] = forced_in_log()
        assert ("||force|| / ||gradient||" in err) == (name == "kept")
    assert found == {"plain": set(), "none": set(), "kept": {"conv_lowrank", "conv_linear"}}
    assert equal("plain_iter_6.caffemodel.h5", "none_iter_6.caffemodel.h5")
    assert not equal("plain_iter_6.caffemodel.h5", "kept_iter_6.caffemodel.h5")


@pytest.fixture
def mixed(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `trained`, with conv decomposed and conv2 whole, both with force."""
    monkeypatch.chdir(write_images(tmp_path, MIXED))
    write_solver(tmp_path, f"{SCHEDULE} force_decay: 0.05 momentum: 0.9 snapshot: 3")
    cut = ("decompose", "--snapshot", NET, "--only-layers", "conv", "--ranks", "2")
    for args in (("train", "--solver", "solver.prototxt"), cut):
        code, _, err = cli(*args)
        assert code == 0, err
    return tmp_path


def test_whole_layers_keep_their_force(mixed: Path, cli: Cli) -> None:
    code, _, err = cli(*GO)
    assert code == 0, err
    assert ONE + "it stays on conv2\n" in err and "NOTHING IS REGULARIZED" not in err
    assert forced_in_log() == {"conv2"}
    # as with a net that says so itself
    text = Path(CUT[1]).read_text()
    own = re.sub(r'(name: "conv_(?:lowrank|linear)".*?)force_mult: 1.0', r"\1", text, flags=re.DOTALL)
    assert own.count("force_mult") == text.count("force_mult") - 2 == 1
    Path("own.prototxt").write_text(own)
    code, _, err = cli(*GO[:2], "own.prototxt", *GO[3:], "--set", "snapshot_prefix=own")
    assert code == 0 and "No force on" not in err, err
    assert equal("net_finetuned_iter_6.caffemodel.h5", "own_iter_6.caffemodel.h5")


@pytest.mark.parametrize("start", ["snapshot", "auto", "plain", "forced"])
def test_going_on_is_as_before(mixed: Path, cli: Cli, start: str) -> None:
    """By finetune, and by plain training with the solver that the snapshot keeps."""
    keep = ("--keep-force",) if start == "forced" else ()
    for prefix, length in (("whole", "9"), ("half", "6")):
        code, _, err = cli(*GO, "--max-iter", length, "--set", f"snapshot_prefix={prefix}", *keep)
        assert code == 0, err
    state = ("--snapshot", "half_iter_6.solverstate.h5")
    again: tuple[str, ...] = (*GO, "--set", "snapshot_prefix=half", "--max-iter", "9")
    if start == "auto":
        again = (*again, "--resume", "auto")
    elif start == "snapshot":
        again = (*again[:3], *state, *again[5:])
    else:
        kept = snapshot.read_model("half_iter_6.caffemodel.h5").attrs["forcereg_solver"]
        Path("kept.prototxt").write_text(kept)
        again = ("train", "--solver", "kept.prototxt", *state, "--max-iter", "9")
    code, _, err = cli(*again)
    assert code == 0 and "Restoring previous solver status" in err, err
    assert ("the force acts on conv_lowrank, conv_linear" in err) == (start == "forced")
    assert (ONE in err) == (start in ("auto", "snapshot"))
    assert equal("whole_iter_9.caffemodel.h5", "half_iter_9.caffemodel.h5")


def test_errors_name_the_net_that_was_given(mixed: Path, cli: Cli) -> None:
    """Its text is part of the solver by then."""
    text = Path(CUT[1]).read_text()
    Path(CUT[1]).write_text(text.replace('type: "ReLU"', 'type: "ReLUU"'))
    code, _, err = cli(*GO)
    assert code == 1 and re.match(rf"{CUT[1]}:\d+: layer 'relu'", said(err))


@pytest.mark.long
def test_with_rank_clipping_and_two_processes(mixed: Path, run_cli: RunCli) -> None:
    """What was clipped has no force on the parts either, and every process does the same."""
    more = ("--rank-clipping", "0.7", "--set", "test_interval=2", "--nproc", "2")
    done = run_cli(*GO, *more, cwd=mixed, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(ONE + "it stays on conv2") == 1
    assert forced_in_log() == {"conv2"}
    clipped = Path("net_finetuned_clipped.prototxt").read_text()
    assert clipped.count("force_mult") == 1 and "conv_lowrank" in clipped


@pytest.mark.parametrize(
    ("more", "acts", "told"),
    [
        pytest.param(FORCED, True, True, id="plain"),
        pytest.param((*FORCED, "--rank-clipping", "0.9"), True, False, id="ranks-are-to-sink"),
        pytest.param((*FORCED, "--set", "force_iter=0"), False, False, id="never"),
        pytest.param((), False, False, id="no-force"),
    ],
)
def test_plain_training_of_a_chain_keeps_its_force_and_says_so(
    trained: Path, cli: Cli, more: tuple[str, ...], acts: bool, told: bool
) -> None:
    own = ("--set", f"net={CUT[1]}", "--set", "snapshot_prefix=own", *CUT[2:], "--log-json", "log.json")
    code, _, err = cli("train", "--solver", "solver.prototxt", *own, "--max-iter", "2", *more)
    assert code == 0, err
    assert err.count("the force acts on conv_lowrank, conv_linear, the parts of decomposed layers") == told
    assert forced_in_log() == ({"conv_lowrank", "conv_linear"} if acts else set())
