"""forcereg decompose as a command: files written, table, JSON, one clear line for each error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg import __main__ as cli
from forcereg.net.load import load_net, shape_net
from forcereg.net.module import Net
from forcereg.net.summary import summarize
from forcereg.schema import NetParameter
from forcereg.snapshot import net_message, read_model, write_model, write_state
from tests.commands.decomposing import INPUTS, NET, write_snapshot


def run(*args: str | Path) -> int:
    """The command line in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["decompose", *map(str, args)])
    return int(stopped.value.code or 0)


@pytest.fixture
def net() -> Net:
    return load_net(NET, seed=1)


@pytest.fixture
def snapshot(tmp_path: Path, net: Net) -> Path:
    return write_snapshot(tmp_path / "snap_iter_7.caffemodel.h5", net)


def test_writes_both_files_and_equals_the_original(snapshot: Path, net: Net, capsys) -> None:
    assert run("--snapshot", snapshot, "--error", "0", "--even-if-dearer") == 0
    prefix = snapshot.with_name("snap_iter_7_lowrank")
    model, weights = Path(f"{prefix}.prototxt"), Path(f"{prefix}.caffemodel.h5")
    batch = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = net(data=batch)["ip"], load_net(model, weights)(data=batch)["ip"]
    assert (found - expected).abs().max() <= 1e-5
    attrs = read_model(weights).attrs
    assert attrs["forcereg_net"] == model.read_text() and attrs["forcereg_seed"] == "1"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"wrote {model} and {weights}"
    (total,) = (line for line in lines if "total" in line)
    (whole,) = (line for line in lines if "whole net" in line)
    assert (
        "14" in total
        and "0.86x" in whole
        and sorted(p.name for p in snapshot.parent.iterdir()) == sorted([snapshot.name, model.name, weights.name])
    )


def test_piped_table_cuts_no_name(tmp_path: Path, capsys) -> None:
    name = "inception_3a/a_layer_with_a_name_that_is_far_longer_than_any_column_of_eighty_characters/3x3_reduce"
    text = NET.replace('"conv1"', f'"{name}"')
    path = tmp_path / "n.caffemodel.h5"
    blobs = {
        layer: {i: b.detach().numpy() for i, b in enumerate(held)} for layer, held in load_net(text).params.items()
    }
    write_model(path, blobs, attrs={"forcereg_net": text, "forcereg_input_shapes": json.dumps(INPUTS)})
    assert run("--snapshot", path, "--error", "0", "--even-if-dearer") == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "3x3_reduce │" in line)
    assert name in row and "21,600" in row


def test_json_is_one_object(snapshot: Path, capsys) -> None:
    assert run("--snapshot", snapshot, "--ranks", "4,2", "--json", "--out", snapshot.with_name("out")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == str(snapshot.with_name("out.prototxt"))
    assert printed["weights"] == str(snapshot.with_name("out.caffemodel.h5"))
    first, second = printed["layers"]
    before, after = 100 * 8 * 27, 100 * (4 * 27 + 8 * 4)
    expected = {"name": "conv1", "type": "Convolution", "full_rank": 8, "rank": 4, "error": first["error"]}
    expected |= {"macs_before": before, "macs_after": after, "speedup": before / after}
    expected |= {"method": "pca", "params_before": 8 * 27 + 8, "params_after": 4 * 27 + 8 * 4 + 8}
    expected |= {"widths": [4], "cheaper_up_to": 6, "ranks": [4], "full_ranks": [8], "rounding": ""}
    assert first == expected
    assert (second["full_rank"], second["rank"]) == (6, 2)
    assert second["macs_after"] == 36 * (2 * 100 + 6 * 2 // 2)
    assert printed["totals"]["macs_before"] == before + second["macs_before"]
    assert printed["skipped"] == [] and printed["folded"] == {}


def test_the_whole_net_is_accounted_for(snapshot: Path, capsys) -> None:
    """As `forcereg summary` counts it, before and after."""
    assert run("--snapshot", snapshot, "--ranks", "4,2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    for when, text in (("before", NET), ("after", Path(printed["model"]).read_text())):
        found = summarize(shape_net(text, "TRAIN", input_shapes=INPUTS))
        assert (printed["net"][f"macs_{when}"], printed["net"][f"params_{when}"]) == (found.macs, found.params)
    assert printed["net"]["speedup"] == printed["net"]["macs_before"] / printed["net"]["macs_after"]


def test_decomposed_layers_carry_the_error_bound(snapshot: Path, capsys) -> None:
    assert run("--snapshot", snapshot, "--error", "0.4", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    old, new = read_model(snapshot).layers, read_model(printed["weights"]).layers
    weight = old["conv1"][0].reshape(8, -1)
    rebuilt = new["conv1_linear"][0].reshape(8, -1) @ new["conv1_lowrank"][0].reshape(-1, 27)
    error = np.square(weight - rebuilt).sum() / np.square(weight).sum()
    assert error == pytest.approx(printed["layers"][0]["error"], abs=1e-6) and error <= 0.4
    assert np.array_equal(new["conv1_linear"][1], old["conv1"][1])
    assert np.array_equal(new["ip"][0], old["ip"][0])


def test_a_state_leads_to_its_model(snapshot: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(snapshot.parent.parent)
    state = snapshot.with_name("snap_iter_7.solverstate.h5")
    write_state(state, 7, 0, f"gone/{snapshot.name}", [])  # the folder was moved since
    assert run("--snapshot", state, "--error", "0.4") == 0
    assert snapshot.with_name("snap_iter_7_lowrank.prototxt").is_file()


@pytest.mark.parametrize("given", ["model", "state"])
def test_binary_snapshots_give_the_same(given: str, snapshot: Path, net: Net, capsys) -> None:
    old = read_model(snapshot)
    model, state = snapshot.with_name("bin_iter_7.caffemodel"), snapshot.with_name("bin_iter_7.solverstate")
    write_model(model, old.layers, attrs=old.attrs, net=net_message(net.spec))
    write_state(state, 7, 0, f"gone/{model.name}", [], binary=True)
    assert run("--snapshot", model if given == "model" else state, "--error", "0.4", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["weights"] == str(snapshot.with_name("bin_iter_7_lowrank.caffemodel"))
    assert run("--snapshot", snapshot, "--error", "0.4", "--json") == 0
    expected = json.loads(capsys.readouterr().out)
    assert printed["layers"] == expected["layers"]
    found, wanted = (read_model(one["weights"]).layers for one in (printed, expected))
    assert all(np.array_equal(found[name][i], values) for name, of in wanted.items() for i, values in of.items())


def test_a_published_model_of_old_is_decomposed(snapshot: Path, tmp_path: Path, capsys) -> None:
    """`layers` with blobs of four axes, as the models of Caffe's zoo have them."""
    old = NetParameter()
    types = {"conv1": "CONVOLUTION", "conv2": "CONVOLUTION", "ip": "INNER_PRODUCT"}
    for name, blobs in read_model(snapshot).layers.items():
        layer = old.layers.add(name=name, type=types.get(name, "NONE"))
        for values in blobs.values():
            blob = layer.blobs.add(data=values.reshape(-1))
            blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - values.ndim) + values.shape
    path, model = tmp_path / "old.caffemodel", tmp_path / "net.prototxt"
    path.write_bytes(old.SerializeToString())
    model.write_text(NET)
    assert run("--snapshot", path, "--error", "0.4", "--model", model, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert run("--snapshot", snapshot, "--error", "0.4", "--json") == 0
    expected = json.loads(capsys.readouterr().out)
    found, wanted = (read_model(one["weights"]).layers for one in (printed, expected))
    assert all(np.array_equal(found[name][i], values) for name, of in wanted.items() for i, values in of.items())
    load_net(printed["model"], printed["weights"])


def test_the_net_of_a_caffe_snapshot_is_given(snapshot: Path, tmp_path: Path, capsys) -> None:
    write_model(snapshot, read_model(snapshot).layers)
    assert run("--snapshot", snapshot, "--error", "0.1") == 1
    assert "give it by --model" in capsys.readouterr().err
    model = tmp_path / "net.prototxt"
    model.write_text(NET)
    assert run("--snapshot", snapshot, "--error", "0.4", "--model", model, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 2


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param([], 2, "give exactly one of --error, --energy, --fork-svd-ratio, --ranks,", id="neither"),
        pytest.param([], 2, "; found none", id="neither-found"),
        pytest.param(["--error", "0.1", "--ranks", "1,1"], 2, "found --error and --ranks", id="both"),
        pytest.param(["--max-macs", "0.5", "--max-params", "0.5"], 2, "found --max-macs and", id="budgets"),
        pytest.param(["--energy", "1.5"], 2, "energy to keep is 1.5", id="energy"),
        pytest.param(["--fork-svd-ratio", "0.9"], 2, "the fork's rule for --method svd, not for pca", id="fork-pca"),
        pytest.param(["--fork-svd-ratio", "2", "--method", "svd"], 2, "the ratio is 2", id="fork-range"),
        pytest.param(["--max-macs", "0"], 2, "'--max-macs': 0.0 is not in the range", id="budget-0"),
        pytest.param(["--max-macs", "nan"], 2, "share of MACs to keep is nan", id="budget-nan"),
        pytest.param(["--max-macs", "0.01"], 2, "of the net's MACs can't be reached: the least is 0.", id="budget-low"),
        pytest.param(["--max-params", "0.01"], 2, "decompose more layers (--fc)", id="params-low"),
        pytest.param(["--max-macs", "0.5", "--choose", "pareto"], 2, "known are energy, minmax", id="choose"),
        pytest.param(["--error", "0.1", "--choose", "minmax"], 2, "--choose says how a budget is spread; give --max-m",
                     id="choose-error"),
        pytest.param(["--max-macs", "1"], 1, "nothing to decompose in <net in", id="budget-1"),
        pytest.param(["--error", "0.1", "--method", "pcs"], 2, 'did you mean "pca"?', id="method"),
        pytest.param(["--error", "0.1", "--method", "mixed"], 2, "decompose's --rank-config FILE.json", id="mixed"),
        pytest.param(["--error", "0.1", "--only-layers", "conv3"], 2, "no Convolution or InnerProduct", id="only"),
        pytest.param(["--error", "0.1", "--only-layers", ","], 2, "--only-layers names no layer", id="only-none"),
        pytest.param(["--error", "0.1", "--except-layers", "conv3"], 2, 'did you mean "conv2"?', id="except"),
        pytest.param(["--error", "0.1", "--only-layers", "conv1", "--except-layers", "conv1"], 2, "both name 'conv1'",
                     id="only-except"),
        pytest.param(["--error", "0.1", "--except-layers", "conv1,conv2"], 1, "nothing to decompose", id="nothing"),
        pytest.param(["--rank-config", "gone.json"], 1, "gone.json: No such file", id="config"),
        pytest.param(["--error", "0.1", "--data-aware", "0"], 2, "'--data-aware': 0 is not in the range", id="aware-0"),
        pytest.param(["--error", "0.1", "--data-aware", "1", "--method", "vh"], 2, "--data-aware needs a layer",
                     id="aware-vh"),
        pytest.param(["--error", "1.5"], 2, "error bound is 1.5", id="error"),
        pytest.param(["--error", "nan"], 2, "error bound is nan", id="nan"),
        pytest.param(["--ranks", "1,x"], 2, "expected whole numbers", id="ranks-text"),
        pytest.param(["--ranks", "1"], 2, "1 ranks given; the net has 2 layers", id="ranks-count"),
        pytest.param(["--ranks", "9,1"], 1, "layer 'conv1': cannot be decomposed: rank is 9", id="rank-range"),
        pytest.param(["--error", "0.1", "--model", "no.prototxt"], 1, "no.prototxt: no such file", id="model"),
    ],
)  # fmt: skip
def test_errors_are_one_line(snapshot: Path, options: list[str], code: int, message: str, capsys) -> None:
    assert run("--snapshot", snapshot, *options) == code
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]


def test_the_snapshot_is_never_overwritten(snapshot: Path, capsys) -> None:
    before = snapshot.read_bytes()
    assert run("--snapshot", snapshot, "--error", "0.4", "--out", snapshot.with_name("snap_iter_7")) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert snapshot.read_bytes() == before and len(list(snapshot.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("args", "steps"),
    [
        (("--error", "0.4"), ["errors of its ranks", "rank"]),
        (("--ranks", "2"), ["errors of its ranks", "rank 2"]),
        (("--max-macs", "0.9"), ["errors of its ranks", "rank"]),
    ],
)
def test_steps_are_told_where_they_take_long(
    args: tuple[str, ...], steps: list[str], snapshot: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forcereg.report.progress.PAUSE", 0.0)
    assert run("--snapshot", snapshot, "--only-layers", "conv1", *args) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": conv1: ")[2][: len(step)] for line, step in zip(lines, steps, strict=True)] == steps
    assert lines[0].startswith("step 1 of at most 2: conv1: ")
