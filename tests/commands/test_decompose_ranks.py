"""forcereg decompose: every rule for ranks, methods and layers on the command line, and what it tells of the cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg import __main__ as cli
from forcereg.net.load import load_net, shape_net
from forcereg.snapshot import read_model, write_model
from forcereg.system.shipped import configs_dir
from tests.commands.decomposing import NET, fresh_snapshot
from tests.conftest import RunCli


def run(*args: str | Path) -> int:
    """The command line in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["decompose", *map(str, args)])
    return int(stopped.value.code or 0)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return fresh_snapshot(tmp_path)


def printed_for(capsys, snapshot: Path, *options: str | Path) -> dict:
    assert run("--snapshot", snapshot, "--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def ranks(printed: dict) -> dict[str, int]:
    return {layer["name"]: layer["rank"] for layer in printed["layers"]}


def config(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("method", ["pca", "svd", "vh"])
def test_energy_is_what_error_leaves(method: str, snapshot: Path, capsys) -> None:
    options = ("--method", method)
    by_energy = printed_for(capsys, snapshot, "--energy", "0.75", *options)
    by_error = printed_for(capsys, snapshot, "--error", "0.25", *options)
    assert by_energy["layers"] == by_error["layers"]
    assert all(layer["error"] <= 0.25 and layer["method"] == method for layer in by_energy["layers"])


def test_the_forks_ratio_is_squared(snapshot: Path, capsys) -> None:
    fork = printed_for(capsys, snapshot, "--fork-svd-ratio", "0.8", "--method", "svd")
    assert fork["layers"] == printed_for(capsys, snapshot, "--energy", "0.64", "--method", "svd")["layers"]


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
@pytest.mark.parametrize("what", ["macs", "params"])
def test_a_budget_is_of_the_whole_net(what: str, share: float, snapshot: Path, capsys) -> None:
    options = (f"--max-{what}", str(share), "--fc")
    net = printed_for(capsys, snapshot, *options)["net"]
    assert net[f"{what}_after"] <= share * net[f"{what}_before"]


def test_max_params_needs_no_shapes(snapshot: Path, tmp_path: Path, capsys) -> None:
    model = tmp_path / "net.prototxt"
    model.write_text(NET.replace("input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } }", ""))
    write_model(snapshot, read_model(snapshot).layers)
    net = printed_for(capsys, snapshot, "--model", model, "--max-params", "0.5", "--fc")["net"]
    assert net["macs_before"] is None and net["params_after"] <= 0.5 * net["params_before"]
    assert run("--snapshot", snapshot, "--model", model, "--max-macs", "0.5") == 1
    assert "the net's MACs are unknown" in capsys.readouterr().err


def test_a_config_gives_method_and_rank(snapshot: Path, tmp_path: Path, capsys) -> None:
    rules = {"//": "Mixed.", "conv1": {"method": "vh", "rank": 5}, "ip": {"method": "svd", "error": 0.5}}
    printed = printed_for(capsys, snapshot, "--method", "mixed", "--rank-config", config(tmp_path, rules))
    assert [(layer["name"], layer["method"]) for layer in printed["layers"]] == [("conv1", "vh"), ("ip", "svd")]
    assert ranks(printed)["conv1"] == 5 and printed["layers"][1]["error"] <= 0.5
    names = [layer.name for layer in load_net(printed["model"], printed["weights"]).spec.layers]
    assert {"conv1_v", "conv1_h", "conv2", "ip_lowrank", "ip_linear"} <= set(names)


def test_a_config_is_narrowed_by_layers(snapshot: Path, tmp_path: Path, capsys) -> None:
    path = config(tmp_path, {"conv1": 3, "conv2": {"energy": 0.5}})
    assert list(ranks(printed_for(capsys, snapshot, "--rank-config", path, "--only-layers", "conv1"))) == ["conv1"]
    assert list(ranks(printed_for(capsys, snapshot, "--rank-config", path, "--except-layers", "conv1"))) == ["conv2"]


@pytest.mark.parametrize(
    ("rules", "options", "code", "message"),
    [
        pytest.param({"conv1": 3}, ["--method", "mixed"], 2, "layer 'conv1' has no method", id="mixed"),
        pytest.param({"conv9": 3}, [], 2, "there is no Convolution or InnerProduct layer 'conv9'", id="unknown"),
        pytest.param({"conv1": 3}, ["--only-layers", "conv2"], 2, "names 'conv2', for which", id="only"),
        pytest.param({"conv1": 3}, ["--error", "0.1"], 2, "found --error and --rank-config", id="two-rules"),
        pytest.param(
            {"conv1": {"method": "pcb", "rank": 1}},
            [],
            1,
            "ranks.json: layer 'conv1': unknown decomposition method 'pcb'; did you mean \"pca\"?",
            id="method",
        ),
        pytest.param({"conv1": 99}, [], 1, "layer 'conv1': rank is 99; expected 1 to 8", id="range"),
        pytest.param({"conv1": [4, 2]}, [], 1, "expected one number (only tucker2 takes a pair)", id="pair"),
        pytest.param([], [], 1, "names no layer; expected", id="form"),
    ],
)
def test_configs_that_do_not_fit(
    snapshot: Path, tmp_path: Path, rules, options, code: int, message: str, capsys
) -> None:
    assert run("--snapshot", snapshot, "--rank-config", config(tmp_path, rules), *options) == code
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not list(tmp_path.glob("*_lowrank*"))


@pytest.mark.parametrize(("method", "hint"), [("mixd", 'did you mean "mixed"?'), ("x", "kmeans, mixed, pca")])
def test_an_unknown_method_is_wrong_usage(method: str, hint: str, snapshot: Path, capsys) -> None:
    assert run("--snapshot", snapshot, "--error", "0.1", "--method", method) == 2
    printed = capsys.readouterr().err
    assert f"unknown decomposition method '{method}'" in printed and hint in printed and printed.count("\n") == 1


def test_layers_can_be_chosen(snapshot: Path, capsys) -> None:
    assert list(ranks(printed_for(capsys, snapshot, "--error", "0.5", "--fc"))) == ["conv1", "conv2", "ip"]
    assert list(ranks(printed_for(capsys, snapshot, "--ranks", "3", "--only-layers", "ip"))) == ["ip"]
    assert list(ranks(printed_for(capsys, snapshot, "--ranks", "3", "--except-layers", "conv2"))) == ["conv1"]


def test_a_chain_that_costs_more_is_pointed_out(snapshot: Path, capsys) -> None:
    assert run("--snapshot", snapshot, "--ranks", "8,2") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "--except-layers" in line)
    cost = (8 * 27 + 8 * 8) / (8 * 27)
    assert line == (
        f"conv1: its chain has {cost:.2f}x the MACs of the layer before; ranks up to 6 cost less, "
        "or leave it: --except-layers conv1"
    )
    remarks = printed_for(capsys, snapshot, "--ranks", "8,2")["remarks"]
    assert remarks == [line]
    assert printed_for(capsys, snapshot, "--ranks", "6,2")["remarks"] == []


def test_a_small_part_of_the_net_is_pointed_out(snapshot: Path, capsys) -> None:
    printed = printed_for(capsys, snapshot, "--ranks", "2", "--only-layers", "ip")
    net, totals = printed["net"], printed["totals"]
    share, most = totals["macs_before"] / net["macs_before"], net["macs_before"]
    most /= net["macs_before"] - totals["macs_before"]
    text = (
        f"the decomposed layers do {share:.0%} of the net's MACs: the whole net can't be more than {most:.2f}x faster"
    )
    assert printed["remarks"] == [f"{text} by them"]


def test_the_model_tells_how_it_was_made(snapshot: Path, capsys) -> None:
    first = printed_for(capsys, snapshot, "--ranks", "6,4")
    second = printed_for(capsys, Path(first["weights"]), "--ranks", "3,2", "--method", "svd")
    attrs = read_model(second["weights"]).attrs
    assert attrs["forcereg_seed"] == "1" and attrs["forcereg_net"] == Path(second["model"]).read_text()
    made = json.loads(attrs["forcereg_decomposed"])
    assert [one["snapshot"] for one in made] == [snapshot.name, Path(first["weights"]).name]
    found = [[(layer["name"], layer["method"], layer["rank"]) for layer in one["layers"]] for one in made]
    assert found == [[("conv1", "pca", 6), ("conv2", "pca", 4)], [("conv1", "svd", 3), ("conv2", "svd", 2)]]
    opening = (
        "# snap_iter_7_lowrank.caffemodel.h5: decomposed by forcereg; ranks: conv1 3 of 6 (svd), conv2 2 of 4 (svd)\n"
    )
    assert attrs["forcereg_net"].startswith(opening)


def test_batchnorm_is_folded_on_request(tmp_path: Path, capsys) -> None:
    norm = """layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "relu1\""""
    path = fresh_snapshot(tmp_path, NET.replace('layer { name: "relu1"', norm))
    plain = printed_for(capsys, path, "--ranks", "4,2")
    assert "bn1" in Path(plain["model"]).read_text()
    printed = printed_for(capsys, path, "--ranks", "4,2", "--fold-bn")
    assert printed["folded"] == {"conv1": ["bn1"]} and "bn1" not in Path(printed["model"]).read_text()
    load_net(printed["model"], printed["weights"])


def test_the_papers_alexnet_recipe(tmp_path: Path, run_cli: RunCli) -> None:
    """The shipped net and the shipped file, by the command as users call it."""
    model, rules = (configs_dir() / "models" / "alexnet" / name for name in ("deploy.prototxt", "ranks_mixed.json"))
    shapes = {name: [tuple(b.shape) for b in held] for name, held in shape_net(model).params.items()}
    random = np.random.default_rng(0)
    blobs = {
        name: {i: random.normal(size=shape).astype(np.float32) if "conv" in name else np.zeros(shape, np.float32)
               for i, shape in enumerate(of)}
        for name, of in shapes.items()
    }  # fmt: skip
    path = tmp_path / "alexnet.caffemodel.h5"
    write_model(path, blobs)
    done = run_cli("decompose", "--snapshot", path, "--model", model, "--method", "mixed", "--rank-config", rules,
                   "--json", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    found = {layer["name"]: (layer["method"], layer["rank"]) for layer in printed["layers"]}
    pca = {"conv3": ("pca", 150), "conv4": ("pca", 160), "conv5": ("pca", 120)}
    assert found == {"conv1": ("vh", 8), "conv2": ("vh", 40), **pca}
    assert printed["net"]["params_before"] == 60_965_224
    layers = {name: [tuple(b.shape) for b in held] for name, held in shape_net(printed["model"]).params.items()}
    assert layers["conv2_v"] == [(40, 48, 5, 1)] and layers["conv2_h"] == [(256, 20, 1, 5), (256,)]
    assert layers["conv4_lowrank"] == [(160, 192, 3, 3)]


def test_data_aware_minimises_the_error_of_the_responses(tmp_path: Path, capsys) -> None:
    """Inputs whose channels differ in power: another approximation, of the same rank, whose error is the responses'."""
    text = FED.replace("FILLER", 'type: "gaussian" std: 2 mean: 1') + BODY
    path = fresh_snapshot(tmp_path, text)
    plain = printed_for(capsys, path, "--ranks", "4,2", "--out", tmp_path / "plain")
    aware = printed_for(capsys, path, "--ranks", "4,2", "--out", tmp_path / "aware", "--data-aware", "2")
    assert ranks(plain) == ranks(aware)
    assert [layer["error"] for layer in plain["layers"]] != [layer["error"] for layer in aware["layers"]]
    batch = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(3)) * 2 + 1
    nets = [(text, path), *((printed["model"], printed["weights"]) for printed in (plain, aware))]
    with torch.no_grad():
        whole, *cut = (load_net(*one, input_shapes={"data": batch.shape})(data=batch)["ip"] for one in nets)
    of_plain, of_aware = (float((whole - one).square().mean()) for one in cut)
    assert of_aware < of_plain


FED = """layer { name: "data" type: "DummyData" top: "data" dummy_data_param {
  shape { dim: 4 dim: 3 dim: 12 dim: 12 } data_filler { FILLER } } }"""
BODY = NET[NET.index('layer { name: "conv1"') : NET.index('layer { name: "loss"')]


@pytest.mark.parametrize(
    "filler", ['type: "gaussian" std: 2 mean: 1', 'type: "constant" value: 1'], ids=["noise", "flat"]
)
@pytest.mark.parametrize("method", ["pca", "svd", "kmeans", "vh", "tucker2", "cp"])
def test_budgets_spread_by_responses(tmp_path: Path, capsys, method: str, filler: str) -> None:
    """A grouped layer among them; also where the inputs' moments have a low rank, and by data-aware chains."""
    path = fresh_snapshot(tmp_path, FED.replace("FILLER", filler) + BODY)
    asked = ("--max-macs", "0.8", "--method", method, "--choose", "responses")
    found = printed_for(capsys, path, *asked, "--out", tmp_path / "low")
    assert found["layers"] and found["net"]["macs_after"] <= 0.8 * found["net"]["macs_before"]
    if method in ("pca", "svd"):
        aware = printed_for(capsys, path, *asked, "--out", tmp_path / "aware", "--data-aware", "2")
        assert all(0 <= layer["error"] <= 1 for layer in aware["layers"])
        assert aware["net"]["macs_after"] <= 0.8 * aware["net"]["macs_before"]


def test_responses_without_data(tmp_path: Path, capsys) -> None:
    fed = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }'
    path = fresh_snapshot(tmp_path, fed + BODY)
    assert run("--snapshot", path, "--max-macs", "0.8", "--choose", "responses") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "its train phase reads no data (a deploy net?); give the solver" in err


@pytest.mark.parametrize("rule", [("--error", "0"), ("--energy", "1"), ("--fork-svd-ratio", "1", "--method", "svd")])
def test_what_a_chain_makes_no_cheaper_stays_whole(rule: tuple[str, ...], snapshot: Path, capsys) -> None:
    hint = "--even-if-dearer decomposes layers whose chain costs no less, too"
    first, second = (8 * 27 + 8 * 8) / (8 * 27), (6 * 100 + 6 * 6 // 2) / 600
    reasons = {"conv1": f"its chain of rank 8 would have {first:.2f}x its MACs",
               "conv2": f"its chain of rank 6 would have {second:.2f}x its MACs"}  # fmt: skip
    assert run("--snapshot", snapshot, *rule) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith(f"({'; '.join(f'{a}: {b}' for a, b in reasons.items())}); {hint}\n")
    assert not list(snapshot.parent.glob("*_lowrank*"))
    assert ranks(printed_for(capsys, snapshot, *rule, "--even-if-dearer")) == {"conv1": 8, "conv2": 6}


def test_a_config_means_its_ranks_but_not_its_errors(snapshot: Path, tmp_path: Path, capsys) -> None:
    path = config(tmp_path, {"conv1": 8, "conv2": {"error": 0}})
    printed = printed_for(capsys, snapshot, "--rank-config", path)
    assert ranks(printed) == {"conv1": 8} and [one["name"] for one in printed["skipped"]] == ["conv2"]
    assert "conv1: its chain has" in printed["remarks"][0]
    assert run("--snapshot", snapshot, "--rank-config", path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "left whole: conv2: its chain of rank 6 would have 1.03x its MACs" in lines
    assert "--even-if-dearer decomposes layers whose chain costs no less, too" in lines
    assert ranks(printed_for(capsys, snapshot, "--rank-config", path, "--even-if-dearer")) == {"conv1": 8, "conv2": 6}


def test_without_shapes_learned_values_decide(snapshot: Path, tmp_path: Path, capsys) -> None:
    model = tmp_path / "net.prototxt"
    model.write_text(NET.replace("input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } }", ""))
    write_model(snapshot, read_model(snapshot).layers)
    assert run("--snapshot", snapshot, "--model", model, "--error", "0") == 1
    assert "conv1: its chain of rank 8 would have 1.29x its learned values" in capsys.readouterr().err


def test_a_deconvolution_is_named_as_left_whole(tmp_path: Path, capsys) -> None:
    up = """layer { name: "up" type: "Deconvolution" bottom: "conv2" top: "up"
  convolution_param { num_output: 6 kernel_size: 2 stride: 2 } }
layer { name: "ip\""""
    text = NET.replace('bottom: "conv2" top: "ip"', 'bottom: "up" top: "ip"').replace('layer { name: "ip"', up)
    path = fresh_snapshot(tmp_path, text)
    printed = printed_for(capsys, path, "--ranks", "4,2")
    reason = "it is a Deconvolution; Convolution and InnerProduct layers are decomposed"
    assert printed["skipped"] == [{"name": "up", "reason": reason}]
    assert printed_for(capsys, path, "--ranks", "4", "--only-layers", "conv1")["skipped"] == []
