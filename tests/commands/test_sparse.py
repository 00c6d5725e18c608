"""`--sparse` and `conv_mode`: the same outputs, a line for each convolution, and what can't be done in one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import forcereg
from forcereg import snapshot
from forcereg.net.load import load_net
from tests.commands.conftest import Cli, said
from tests.solver.nets import write_images

MODEL = ("--model", "net.prototxt", "--weights", "w.caffemodel.h5", "--device", "cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images net in the working directory, and a model of it with one filter and a column of conv's weights 0."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    net = load_net("net.prototxt", seed=3)
    net.params["conv"][0].data[1] = 0
    net.params["conv"][0].data[:, :, 0, 2] = 0
    layers = {name: {i: blob.detach().numpy() for i, blob in enumerate(blobs)} for name, blobs in net.params.items()}
    net.close()
    snapshot.write_model(tmp_path / "w.caffemodel.h5", layers)
    return tmp_path


def scored(cli: Cli, *more: str) -> tuple[list[float], str]:
    """The means on standard output, and standard error."""
    code, out, err = cli("test", *MODEL, "--iterations", 2, *more)
    assert code == 0, err
    return [float(value) for value in re.findall(r"(?:=|Loss:) ([-+\d.e]+)", out)], err


@pytest.mark.parametrize("form", ["ccnmm", "csr", "direct"])
def test_scores_are_those_of_the_dense_net(form: str, here: Path, cli: Cli) -> None:
    if form == "direct":
        pytest.importorskip("numba")
    dense, quiet = scored(cli)
    assert "weights" not in quiet
    found, err = scored(cli, "--sparse", form)
    np.testing.assert_allclose(found, dense, rtol=1e-5)
    # 36 weights: 9 of a filter, and 3 more of a column
    assert re.search(rf"\] conv: 66\.7% of weights aren't 0, {form}$", err, re.MULTILINE)


def test_classes_are_counted_without_the_zeros(here: Path, cli: Cli) -> None:
    tables = []
    for more in ((), ("--sparse", "ccnmm")):
        code, out, err = cli("confusion", *MODEL, *more)
        assert code == 0, err
        tables.append(out)
    assert tables[1] == f"conv: 66.7% of weights aren't 0, ccnmm\n{tables[0]}"
    found = forcereg.confusion("net.prototxt", "w.caffemodel.h5", sparse="csr", device="cpu")
    assert [one.form for one in found.sparse] == ["csr"]


def test_a_gemm_mode_has_no_effect_which_is_said(here: Path, cli: Cli) -> None:
    dense, quiet = scored(cli)
    assert "gemm_mode" not in quiet
    text = (here / "net.prototxt").read_text()
    (here / "net.prototxt").write_text(text.replace("inner_product_param {", "inner_product_param { gemm_mode: SPMDM"))
    with pytest.warns(
        UserWarning, match="'ip': gemm_mode SPMDM has no effect: an InnerProduct multiplies by all"
    ) as told:
        assert scored(cli)[0] == dense
    assert len(told) == 1


def test_the_net_says_it_itself(here: Path, cli: Cli) -> None:
    dense, _ = scored(cli)
    text = (here / "net.prototxt").read_text()
    (here / "net.prototxt").write_text(text.replace("kernel_size: 3", "kernel_size: 3 conv_mode: LOWERED_CCNMM"))
    found, err = scored(cli)
    np.testing.assert_allclose(found, dense, rtol=1e-5)
    assert "conv: 66.7% of weights aren't 0, ccnmm" in err
    # the option wins
    assert "aren't 0, dense" in scored(cli, "--sparse", "dense")[1]


def test_auto_measures_and_says_what_it_took(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import forcereg.study.sparse as chooser

    took = {"dense": 3.0, "ccnmm": 1.0, "csr": 2.0, "direct": 2.5}
    made = []

    def interleaved(runs: list, device: object, seconds: float) -> list[list[float]]:
        made.extend(run() for run in runs)
        return [[ms] for ms in list(took.values())[: len(runs)]]

    monkeypatch.setattr(chooser, "interleaved", interleaved)
    dense, _ = scored(cli)
    found, err = scored(cli, "--sparse", "auto")
    np.testing.assert_allclose(found, dense, rtol=1e-5)
    assert "conv: 66.7% of weights aren't 0, ccnmm (dense 3 ms, ccnmm 1 ms, csr 2 ms" in err
    for one in made[1:]:
        np.testing.assert_allclose(one.detach(), made[0].detach(), atol=1e-5)
    # what gains next to nothing isn't worth it
    took.update(ccnmm=2.9, csr=2.9, direct=2.9)
    assert "aren't 0, dense (dense 3 ms, ccnmm 2.9 ms" in scored(cli, "--sparse", "auto")[1]


def test_auto_leaves_full_layers_as_they_are(here: Path, cli: Cli) -> None:
    code, _, err = cli("time", "--model", "net.prototxt", "--iterations", 1, "--sparse", "auto", "--device", "cpu")
    assert code == 0 and "conv: 100.0% of weights aren't 0, dense\n" in err


def test_time_runs_forwards_alone(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("time", *MODEL, "--iterations", 1, "--sparse", "auto")
    code, out, err = cli(*args)
    assert (code, out) == (0, "")
    assert re.search(r"measuring conv, dense and as ccnmm, csr(, direct)?$", err, re.MULTILINE)
    assert re.search(r"conv: 66\.7% of weights aren't 0, \w+ \(dense [\d.e-]+ ms, ccnmm [\d.e-]+ ms", err)
    assert "Iteration: 1 forward time" in err and "Average Forward pass" in err and "ackward" not in err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = cli(*args)
    for text in ("of each form alone", "form", "not 0", "in the net", "ccnmm", "66.7%", "total"):
        assert text in " ".join(out.split())


@pytest.mark.parametrize(
    ("command", "args", "code", "says"),
    [
        pytest.param("test", ["cnmm"], 2, "unknown sparse form 'cnmm'; did you mean \"ccnmm\"?", id="name"),
        pytest.param("time", ["spares"], 2, "unknown sparse form 'spares'; expected auto, dense, ccnmm, csr, direct",
                     id="other"),
        pytest.param("time", ["csr", "--runtime", "onnxruntime"], 2, "sparse forms are torch's, and onnxruntime runs",
                     id="runtime"),
    ],
)  # fmt: skip
def test_what_can_be_wrong(command: str, args: list[str], code: int, says: str, here: Path, cli: Cli) -> None:
    if "onnxruntime" in args:
        pytest.importorskip("onnxruntime")
    found, _, err = cli(command, *MODEL, "--sparse", *args)
    assert (found, says in said(err)) == (code, True), err


def test_a_missing_package_is_said(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forcereg.layers.sparse.form.find_spec", lambda name: None)
    code, _, err = cli("test", *MODEL, "--sparse", "direct")
    assert (code, said(err)) == (1, 'direct needs numba; install with pip install "forcereg[sparse]"')
    # the others serve without it
    _, told = scored(cli, "--sparse", "auto")
    assert "ccnmm" in told and "direct" not in told
    text = (here / "net.prototxt").read_text()
    (here / "net.prototxt").write_text(text.replace("kernel_size: 3", "kernel_size: 3 conv_mode: SCONV"))
    code, _, err = cli("test", *MODEL)
    assert code == 1
    assert said(err).endswith("layer 'conv': direct needs numba; install with pip install \"forcereg[sparse]\"")


def test_what_learns_is_refused(here: Path, cli: Cli) -> None:
    text = (here / "net.prototxt").read_text()
    (here / "net.prototxt").write_text(text.replace("kernel_size: 3", "kernel_size: 3 conv_mode: LOWERED_CSRMM"))
    (here / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 solver_mode: CPU'
    )
    code, _, err = cli("train", "--solver", "solver.prototxt")
    assert code == 1
    assert "layer 'conv': a sparse conv_mode has no backward pass, it is for nets that don't learn" in said(err)
    code, out, err = cli("check", "solver.prototxt")
    assert code == 1
    assert re.search(r"problem: net\.prototxt:\d+: layer 'conv': a sparse conv_mode has no backward pass", out + err)
