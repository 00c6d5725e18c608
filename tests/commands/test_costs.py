"""What decompose, ranks, sensitivity and frontier take for a net's cost: that of its TEST net, as summary counts it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from forcereg.net.load import load_net, shape_net
from forcereg.net.summary import summarize
from forcereg.schema import TEST, TRAIN
from forcereg.schema.text import read_net, to_text
from forcereg.snapshot import write_model
from forcereg.system.shipped import configs_dir
from tests.commands.conftest import Cli, said

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 16 dim: 16 } } }'


def conv(name: str, bottom: str, more: str = "", window: str = "kernel_size: 3 pad: 1", outputs: int = 8) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" {more} convolution_param '
        f'{{ num_output: {outputs} {window} weight_filler {{ type: "xavier" }} }} }}'
    )


def only(phase: str, more: str = "") -> str:
    return f"include {{ phase: {phase} {more} }}"


def silent(bottom: str, rule: str) -> str:
    return f'layer {{ name: "silence_{bottom}" type: "Silence" bottom: "{bottom}" {rule} }}'


FAULT = [  # budget-train-only: an auxiliary convolution in training, and a name that stands in both phases
    DATA,
    conv("c", "data", only("TRAIN")),
    conv("c", "data", only("TEST")),
    conv("aux", "c", only("TRAIN")),
    silent("aux", only("TRAIN")),
    conv("d", "c"),
]
NETS = {
    "train-only": FAULT,
    "two-windows": [
        DATA,
        conv("c", "data", only("TRAIN"), "kernel_size: 3 stride: 2"),
        conv("c", "data", only("TEST"), "kernel_size: 3 pad: 1"),
        conv("d", "c"),
    ],
    "two-sizes": [
        DATA.replace("input_param", f"{only('TRAIN')} input_param"),
        DATA.replace("input_param", f"{only('TEST')} input_param").replace("16", "20"),
        conv("c", "data"),
        conv("d", "c"),
    ],
    "test-only": [DATA, conv("c", "data"), conv("d", "c"), conv("e", "d", only("TEST"))],
    "stages": [
        DATA,
        conv("c", "data"),
        conv("d", "c"),
        conv("e", "d", 'exclude { stage: "slow" }'),
        conv("f", "d", only("TEST", 'stage: "slow"')),
        conv("g", "d", only("TEST", "min_level: 1")),
        conv("h", "d", only("TEST", 'not_stage: "slow"')),
    ],
    "shared": [
        DATA,
        conv("c", "data", outputs=3),
        conv("d", "c", 'param { name: "w" } param { name: "b" }', outputs=3),
        conv("e", "d", 'param { name: "w" } param { name: "b" }', outputs=3),
        conv("f", "e", 'param { name: "f" } param { name: "b" }', outputs=3),
        conv("g", "f", outputs=16),
        conv("h", "g", outputs=16),
    ],
    "in-place": [
        DATA,
        conv("c", "data"),
        'layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }',
        conv("d", "c"),
        f'layer {{ name: "drop" type: "Dropout" bottom: "d" top: "d" {only("TRAIN")} }}',
        conv("e", "d"),
    ],
}


def written(folder: Path, text: str) -> Path:
    """A snapshot of random weights for the layers of every state."""
    layers: dict[str, dict[int, np.ndarray]] = {}
    for phase, level, stages in ((TRAIN, 0, ()), (TEST, 0, ()), (TEST, 1, ()), (TEST, 0, ("slow",))):
        net = load_net(text, None, phase, level, stages, seed=1)
        for name, held in net.params.items():
            blobs = {i: b.detach().numpy() for i, b in enumerate(held) if f"{name}/{i}" not in net.shared}
            layers.setdefault(name, blobs)
    path = folder / "net.caffemodel.h5"
    write_model(path, layers, attrs={"forcereg_net": text})
    return path


def counted(model: str, phase: str = "TEST", **shapes: tuple[int, ...]) -> tuple[int, int]:
    """MACs and learned values as `forcereg summary` counts them."""
    found = summarize(shape_net(model, phase, input_shapes=shapes))
    return found.macs, found.params


def costs(net: dict, when: str) -> tuple[int, int]:
    return net[f"macs_{when}"], net[f"params_{when}"]


@pytest.mark.parametrize("share", [0.75, 0.9])
@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("name", NETS)
def test_budgets_and_costs_are_those_of_the_test_net(
    name: str, measure: str, share: float, tmp_path: Path, cli: Cli
) -> None:
    text = "\n".join(NETS[name])
    snapshot = written(tmp_path, text)
    code, out, err = cli("decompose", "--snapshot", snapshot, f"--max-{measure}", share, "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["phase"] == "TEST"
    for when, model in (("before", text), ("after", Path(printed["model"]).read_text())):
        assert costs(printed["net"], when) == counted(model)
        if printed["train_net"] is None:
            assert counted(model, "TRAIN") == counted(model)
        else:
            assert costs(printed["train_net"], when) == counted(model, "TRAIN")
    after, before = (printed["net"][f"{measure}_{when}"] for when in ("after", "before"))
    assert after <= share * before
    kept = [layer["name"] for layer in printed["layers"]]
    assert set(kept) <= {layer.name for layer, _ in load_net(text).built}
    # once more: the chains are the layers of the TEST net
    code, out, err = cli("decompose", "--snapshot", printed["weights"], "--ranks", ",".join("1" for _ in kept),
                         "--only-layers", ",".join(kept), "--json", "--out", tmp_path / "twice")  # fmt: skip
    again = json.loads(out)
    assert code == 0, err
    assert costs(again["net"], "before") == costs(printed["net"], "after")
    assert costs(again["net"], "after") == counted(Path(again["model"]).read_text())
    assert [layer["macs_before"] for layer in again["layers"]] == [layer["macs_after"] for layer in printed["layers"]]


def test_what_no_test_net_has_stays_whole(tmp_path: Path, cli: Cli) -> None:
    snapshot = written(tmp_path, "\n".join(FAULT))
    reason = "the TEST net is without it, and costs are those of that net"
    _, out, _ = cli("decompose", "--snapshot", snapshot, "--error", "0.3")
    before, after = (re.sub(r"[^\d]+", " ", line).split() for line in out.splitlines() if "whole net, T" in line)
    assert "left whole: aux: " + reason in out and before[0] == "202" and after[0] == "350"
    costed = "costs are those of the TEST net; the TRAIN net has 350,208 MACs and 1,392 learned values"
    assert costed in out.splitlines()
    _, out, _ = cli("ranks", snapshot)
    assert f"can't be decomposed: aux: {reason}" in out and costed in out.splitlines()
    code, _, err = cli("decompose", "--snapshot", snapshot, "--max-macs", "0.5", "--only-layers", "aux")
    assert code == 1 and said(err).endswith(f"(aux: {reason})")


def test_without_a_test_net_costs_are_those_of_training(tmp_path: Path, cli: Cli) -> None:
    text = "\n".join([DATA.replace("input_param", f"{only('TRAIN')} input_param"), conv("c", "data"), conv("d", "c")])
    path = tmp_path / "net.caffemodel.h5"
    held = load_net(text, phase="TRAIN", seed=1).params
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(of)} for name, of in held.items()}
    write_model(path, blobs, attrs={"forcereg_net": text})
    line = "the net has no TEST net that can be built: costs are those of its TRAIN net"
    for command in (("decompose", "--max-macs", "0.6", "--snapshot"), ("ranks",)):
        code, out, _ = cli(*command, path)
        assert code == 0 and line in out.splitlines()
    code, out, _ = cli("decompose", "--snapshot", path, "--max-macs", "0.6", "--json")
    printed = json.loads(out)
    assert (printed["phase"], printed["train_net"]) == ("TRAIN", None)
    assert costs(printed["net"], "after") == counted(Path(printed["model"]).read_text(), "TRAIN")


def test_stages_are_those_of_the_solvers_test_net(tmp_path: Path, cli: Cli) -> None:
    """As scores are: the net of the first test_state."""
    text = "\n".join([*NETS["stages"][:2], conv("d", "c", only("TEST", 'stage: "deep"')), conv("e", "c")])
    nets = {state: load_net(text, stages=state, seed=1) for state in ((), ("deep",))}
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(of)} for name, of in nets["deep",].params.items()}
    path, solver = tmp_path / "net.caffemodel.h5", tmp_path / "solver.prototxt"
    write_model(path, blobs, attrs={"forcereg_net": text})
    solver.write_text('net: "net.prototxt" test_iter: 1 test_interval: 1 test_state { stage: "deep" } base_lr: 0.1\n')
    asked = ("decompose", "--snapshot", path, "--max-macs", "0.7", "--json")
    for options, state in (((), ()), (("--solver", solver), ("deep",))):
        net = json.loads(cli(*asked, *options)[1])["net"]
        assert net["macs_before"] == summarize(nets[state]).macs


@pytest.mark.parametrize("given", ["snapshot", "option"])
def test_shapes_that_a_snapshot_keeps_are_of_what_cannot_be_opened_only(given: str, tmp_path: Path, cli: Cli) -> None:
    """A snapshot keeps the training net's; the TEST net's own Input is of another size."""
    text = "\n".join(NETS["two-sizes"])
    path = written(tmp_path, text)
    shapes = {"data": [2, 3, 16, 16]}
    net = load_net(text, phase="TRAIN", seed=1)
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(of)} for name, of in net.params.items()}
    write_model(path, blobs, attrs={"forcereg_net": text, "forcereg_input_shapes": json.dumps(shapes)})
    options = ("--input-shape", "data=9,3,24,24") if given == "option" else ()
    printed = json.loads(cli("decompose", "--snapshot", path, "--ranks", "2,2", "--json", *options)[1])
    expected = {"data": (9, 3, 24, 24)} if given == "option" else {}
    assert costs(printed["net"], "before") == counted(text, **expected)


ABSENT = [
    DATA.replace('"Input" top: "data"', '"Data" top: "data" top: "label"')
    .replace("input_param { shape", 'data_param { source: "absent_lmdb" backend: LMDB batch_size: 2 } #')
    .replace("} }", ""),
    "}",
    conv("c", "data"),
    conv("d", "c"),
]
SHAPES = ("--input-shape", "data=2,3,16,16", "--input-shape", "label=2")


@pytest.fixture
def absent(tmp_path: Path) -> Path:
    """A snapshot whose net's data isn't here, and which holds no shapes."""
    text = "\n".join(ABSENT)
    net = load_net(text, seed=1, input_shapes={"data": (2, 3, 16, 16), "label": (2,)})
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(of)} for name, of in net.params.items()}
    write_model(tmp_path / "absent.caffemodel.h5", blobs, attrs={"forcereg_net": text})
    return tmp_path / "absent.caffemodel.h5"


def test_input_shapes_make_macs_known(absent: Path, cli: Cli) -> None:
    code, _, err = cli("decompose", "--snapshot", absent, "--max-macs", "0.6")
    assert code == 1 and "the net's MACs are unknown" in said(err) and "--input-shape" in err
    code, out, _ = cli("decompose", "--snapshot", absent, "--max-macs", "0.6", "--json", *SHAPES)
    net = json.loads(out)["net"]
    assert code == 0 and costs(net, "before") == counted("\n".join(ABSENT), data=(2, 3, 16, 16), label=(2,))
    assert net["macs_after"] <= 0.6 * net["macs_before"]
    assert "MACs are unknown" in cli("ranks", absent)[1]
    code, out, _ = cli("ranks", absent, "--json", *SHAPES)
    assert json.loads(out)["net"][0]["macs_before"] == net["macs_before"]


def test_weights_of_another_net_are_told_where_shapes_are_given(absent: Path, tmp_path: Path, cli: Cli) -> None:
    model = tmp_path / "net.prototxt"
    model.write_text("\n".join([*ABSENT[:-1], conv("d", "c", window="kernel_size: 5")]))
    code, _, err = cli("ranks", absent, "--model", model, *SHAPES)
    assert code == 1 and "layer 'd' blob 0: shape (8, 8, 3, 3) in the file, (8, 8, 5, 5) in the net" in said(err)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        pytest.param("data=2,3,16,16", "input_shapes lacks label", id="half"),
        pytest.param("data", "--input-shape is 'data'; expected BLOB=N,C,H,W", id="form"),
        pytest.param("c=2,8,16,16", "absent_lmdb", id="no-input"),
    ],
)
@pytest.mark.parametrize("command", [("decompose", "--error", "0.1", "--snapshot"), ("ranks",)])
def test_shapes_that_do_not_fit_are_one_line(
    command: tuple[str, ...], shape: str, message: str, absent: Path, cli: Cli
) -> None:
    code, out, err = cli(*command, absent, "--input-shape", shape)
    assert code in (1, 2) and out == "" and message in said(err)


def test_a_shape_of_no_input_is_named(tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("ranks", written(tmp_path, "\n".join(FAULT)), "--input-shape", "dat=2,3,9,9")
    assert code == 1
    assert said(err).endswith("a shape is given for 'dat', which is no input here; did you mean \"data\"?")


@pytest.mark.parametrize("auxiliary", ["both", "TRAIN"])
def test_googlenets_budget(auxiliary: str, tmp_path: Path, cli: Cli) -> None:
    """The shipped net, whose data isn't here; as it is, and with its auxiliary classifiers in training only."""
    net = read_net(configs_dir() / "models" / "googlenet" / "train_val.prototxt").message
    for layer in list(net.layer) if auxiliary == "TRAIN" else []:
        if re.match("loss[12]/", layer.name):
            net.layer.remove(layer) if layer.type == "Accuracy" else layer.include.add(phase=TRAIN)
    model, path = tmp_path / "net.prototxt", tmp_path / "g.caffemodel.h5"
    model.write_text(to_text(net))
    shapes = {"data": (32, 3, 224, 224), "label": (32,)}
    random = np.random.default_rng(0)
    held = shape_net(str(model), "TRAIN", input_shapes=shapes).params
    layers = {
        name: {i: random.normal(size=tuple(b.shape)).astype(np.float32) for i, b in enumerate(of)}
        for name, of in held.items()
    }
    write_model(path, layers)
    few = "conv1/7x7_s2,conv2/3x3,inception_3a/3x3,inception_3b/3x3,inception_4a/3x3,loss1/conv,inception_5b/3x3"
    options = [f"--input-shape={name}={','.join(map(str, shape))}" for name, shape in shapes.items()]
    code, out, err = cli("decompose", "--snapshot", path, "--model", model, "--max-macs", "0.8", "--only-layers", few,
                         "--json", *options)  # fmt: skip
    assert code == 0, err
    printed = json.loads(out)
    assert costs(printed["net"], "before") == counted(str(model), **shapes)
    assert costs(printed["net"], "after") == counted(printed["model"], **shapes)
    assert 0.78 <= printed["net"]["macs_after"] / printed["net"]["macs_before"] <= 0.8
    assert ("loss1/conv" in {one["name"] for one in printed["skipped"]}) == (auxiliary == "TRAIN")
    assert (printed["train_net"] is None) == (auxiliary == "both")
