"""`forcereg convert`: models and states in the other format hold the same, to the bit, and training goes on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError, UsageError
from forcereg.net.convert import convert
from forcereg.net.load import load_net
from forcereg.schema import BlobProto, NetParameter, SolverState
from forcereg.schema.text import parse_net, parse_text
from forcereg.snapshot import (
    ModelFile,
    StateFile,
    binary,
    model_of,
    net_message,
    read,
    read_model,
    read_state,
    write_model,
    write_state,
)
from tests.commands.conftest import Cli, said
from tests.conftest import RunCli
from tests.golden_cases import Case, golden_cases
from tests.snapshot.test_binary import EXTRA, net_of, numbered
from tests.snapshot.test_content import extras, float32s, same, texts
from tests.snapshot.test_golden import caffe_file
from tests.snapshot.test_legacy import NET as OLD_NET
from tests.snapshot.test_legacy import put, v0, v1, values
from tests.snapshot.test_raw import model as raw_model
from tests.snapshot.test_raw import raw
from tests.solver.nets import write_images
from tests.solver.test_binary_resume import ENDS, assert_same, parts, train
from tests.solver.test_resume import told


def message(path: Path) -> Any:
    """A binary model as Caffe, which knows none of our fields, reads it."""
    net = NetParameter.FromString(path.read_bytes())
    net.DiscardUnknownFields()
    return net


def content(path: Path) -> dict[str, Any]:
    found = read(path)
    return {key: value for key, value in vars(found).items() if key != "path"}


# -- what training wrote


@pytest.mark.parametrize("form", ENDS, ids=["from-binary", "from-hdf5"])
def test_a_run_goes_on_from_what_was_converted(form: str, tmp_path: Path) -> None:
    """Bit for bit; and what is converted is what training would have written in that format."""
    (other,) = set(ENDS) - {form}
    here, there = ENDS[form], ENDS[other]
    write_images(tmp_path)
    whole = train(tmp_path, 6, form)
    kinds = ("caffemodel", "solverstate")
    olds = [tmp_path / f"s_iter_6.{kind}{here}" for kind in kinds]
    news = [tmp_path / f"s_iter_6.{kind}{there}" for kind in kinds]
    for old, new in zip(olds, news, strict=True):
        convert(old, new)
    assert read_state(news[1]).learned_net == f"s_iter_6.caffemodel{there}"
    assert model_of(read_state(news[1]), [news[0]]).path == news[0] and read_state(news[1]).goes_with(read(news[0]))
    for path in olds:
        path.unlink()
    resumed = train(tmp_path, 6, other, "again", news[1])
    assert not resumed.texts() and told(resumed, 6) == told(whole, 6)
    for kind in kinds:
        assert_same(parts(tmp_path / f"s_iter_14.{kind}{here}"), parts(tmp_path / f"again_iter_14.{kind}{there}"))
    train(tmp_path, 6, other, "other")
    for kind, new in zip(kinds, news, strict=True):
        assert_same(parts(tmp_path / f"other_iter_6.{kind}{there}"), parts(new))
    if not there:
        assert message(news[0]) == message(tmp_path / "other_iter_6.caffemodel")


@pytest.mark.parametrize("form", ENDS, ids=["from-binary", "from-hdf5"])
def test_there_and_back_it_is_the_same(form: str, tmp_path: Path) -> None:
    """To the byte, once names are in the order that HDF5 gives them."""
    (other,) = set(ENDS) - {form}
    write_images(tmp_path)
    train(tmp_path, 14, form)
    for kind in ("caffemodel", "solverstate"):
        order = enumerate((other, form, other, form))
        paths = [tmp_path / f"s_iter_14.{kind}{ENDS[form]}"]
        paths += [tmp_path / f"{number}.{kind}{ENDS[one]}" for number, one in order]
        for one, next in pairwise(paths):
            convert(one, next)
        assert_same(content(paths[0]), content(paths[2]))
        assert paths[1].read_bytes() == paths[3].read_bytes() and paths[2].read_bytes() == paths[4].read_bytes()
        assert kind == "solverstate" or ENDS[form] or message(paths[0]) == message(paths[2])


# -- what Caffe wrote


@pytest.mark.parametrize("case", golden_cases("snapshots"))
def test_caffes_two_formats(case: Case, tmp_path: Path) -> None:
    """Caffe wrote both of each: one as the other holds what that holds, shared blobs and diffs too."""
    plain, hdf5 = (caffe_file(case, f"caffemodel{end}", tmp_path) for end in ("", ".h5"))
    convert(plain, tmp_path / "a.caffemodel.h5")
    made, wanted = read_model(tmp_path / "a.caffemodel.h5"), read_model(hdf5)
    assert made.layers.keys() == wanted.layers.keys() and same(made.layers, wanted.layers)
    assert made.diffs.keys() == wanted.diffs.keys() and same(made.diffs, wanted.diffs)
    convert(tmp_path / "a.caffemodel.h5", tmp_path / "b.caffemodel")
    assert message(tmp_path / "b.caffemodel") == message(plain)
    convert(hdf5, tmp_path / "c.caffemodel", parse_net(case.attrs["net"]))
    found, expected = message(tmp_path / "c.caffemodel"), message(plain)
    for layer in expected.layer:
        layer.ClearField("display")  # which only that fork writes
    assert found == expected
    assert read_model(tmp_path / "c.caffemodel").attrs == {"forcereg_net": case.attrs["net"]}
    for end, target in (("", "a.solverstate.h5"), (".h5", "a.solverstate")):
        state = caffe_file(case, f"solverstate{end}", tmp_path)
        convert(state, tmp_path / target)
        assert_same(content(state), content(tmp_path / target) | {"learned_net": read_state(state).learned_net})


# -- all that can be there


HDF5_NAMES = st.text("abc/é ", min_size=1, max_size=4).filter(lambda name: {"", "."}.isdisjoint(name.split("/")))


@settings(max_examples=30)
@given(
    layers=st.dictionaries(HDF5_NAMES, st.lists(float32s, max_size=3), min_size=1, max_size=4),
    with_diffs=st.booleans(),
    attrs=st.dictionaries(st.sampled_from(["forcereg_seed", "note"]), texts.filter(lambda text: "\0" not in text)),
)
def test_models_of_any_kind(
    layers: Any, with_diffs: bool, attrs: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Layers without blobs aside, which HDF5 can't tell from groups that lead to another."""
    folder = tmp_path_factory.getbasetemp()
    blobs = numbered(layers)
    diffs = numbered({name: [-one for one in held] for name, held in layers.items()}) if with_diffs else None
    write_model(folder / "a.caffemodel", blobs, diffs, attrs, net_of(layers))
    paths = [folder / name for name in ("a.caffemodel", "b.caffemodel.h5", "c.caffemodel", "d.caffemodel.h5")]
    for one, other in pairwise(paths):
        convert(one, other)
    found = [content(path) for path in paths]
    for one in found[1:]:
        for kind in ("layers", "diffs"):
            assert same({name: held for name, held in one[kind].items() if held},
                        {name: held for name, held in found[0][kind].items() if held})  # fmt: skip
    assert message(paths[0]) == message(paths[2]) and found[2]["attrs"] == attrs
    assert paths[1].read_bytes() == paths[3].read_bytes()


@settings(max_examples=30)
@given(extra=st.none() | extras, history=st.lists(float32s, max_size=4), iteration=st.integers(0, 9**9))
def test_states_of_any_kind(extra: Any, history: Any, iteration: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_state(folder / "a.solverstate", iteration, 3, "m.caffemodel", history, extra, binary=True)
    convert(folder / "a.solverstate", folder / "b.solverstate.h5")
    convert(folder / "b.solverstate.h5", folder / "c.solverstate")
    one, *others = (content(folder / name) for name in ("a.solverstate", "b.solverstate.h5", "c.solverstate"))
    for other in others:
        assert_same(one.pop("history", None) or other["history"], other["history"])
        assert (other["iteration"], other["current_step"], other["learned_net"]) == (iteration, 3, "m.caffemodel")
        assert other["extra"] is None if extra is None else same(other["extra"], extra)


PERMISSIVE = """
name: "shared"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 4 } }
layer { name: "c" type: "InnerProduct" bottom: "a" top: "c" param { name: "w" share_mode: PERMISSIVE } %s
  inner_product_param { num_output: 6 } }
"""


@pytest.mark.parametrize("other", ['param { name: "own" }', "", 'param { name: "b2" lr_mult: 0 }'])
def test_blobs_that_are_shared_in_another_shape(other: str, tmp_path: Path) -> None:
    """HDF5 as training writes it lacks them; a binary file has each under both, in its own shape."""
    net = load_net(PERMISSIVE % other, seed=1)
    everywhere = {name: {i: blob.detach().numpy() for i, blob in enumerate(own)} for name, own in net.params.items()}
    under_owner = {**everywhere, "c": {1: everywhere["c"][1]}}
    write_model(tmp_path / "a.caffemodel.h5", under_owner, attrs={"forcereg_net": net.spec.text})
    convert(tmp_path / "a.caffemodel.h5", tmp_path / "b.caffemodel")
    write_model(tmp_path / "expected", everywhere, None, {"forcereg_net": net.spec.text}, net_message(net.spec))
    assert read_model(tmp_path / "b.caffemodel").layers["c"][0].shape == (6, 4)
    for layer, held in everywhere.items():
        assert same(read_model(tmp_path / "b.caffemodel").layers[layer], held)
    convert(tmp_path / "b.caffemodel", tmp_path / "c.caffemodel.h5")
    again = load_net(PERMISSIVE % other, tmp_path / "c.caffemodel.h5")
    assert all(np.array_equal(again.params["c"][i].detach(), everywhere["c"][i]) for i in (0, 1))


def test_without_the_net_names_and_weights(tmp_path: Path, cli: Cli) -> None:
    """Which is enough for Caffe, that loads by name; what the rest needs is said."""
    write_model(tmp_path / "a.h5", numbered({"ip": [np.ones((2, 3)), np.zeros(2)], "relu": []}))
    code, out, err = cli("convert", tmp_path / "a.h5", tmp_path / "b.caffemodel")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{tmp_path / 'a.h5'}: it holds no net, so that the new file tells names and weights only; --model NET gives "
        "the rest",
        f"wrote {tmp_path / 'b.caffemodel'}: a model in binary, 2 blobs of 8 values",
    ]
    net = message(tmp_path / "b.caffemodel")
    assert [(layer.name, layer.type, len(layer.blobs)) for layer in net.layer] == [("ip", "", 2)]


# -- old forms


@pytest.mark.parametrize("end", [".caffemodel", ".caffemodel.h5"])
@pytest.mark.parametrize(("form", "name"), [(v1, "V1"), (v0, "V0")])
def test_old_nets_become_todays(form: Any, name: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "old.caffemodel").write_bytes(form().SerializeToString())
    done = convert(tmp_path / "old.caffemodel", tmp_path / f"new{end}")
    axes = "blobs of four axes have as many as their layers take now"
    assert done.remarks == (f"its {name} layers have become today's", axes)
    found = read_model(tmp_path / f"new{end}")
    shapes = {name: [one.shape for one in held.values()] for name, held in found.layers.items() if held}
    assert not found.legacy and shapes == {"conv": [(1, 3, 3, 3), (1,)], "ip": [(5, 4), (5,)]}
    before, after = (load_net(OLD_NET, tmp_path / one) for one in ("old.caffemodel", f"new{end}"))
    assert all(np.array_equal(one.detach(), after.params[name][i].detach())
               for name, held in before.params.items() for i, one in enumerate(held))  # fmt: skip
    if end == ".caffemodel":
        assert [layer.type for layer in message(tmp_path / "new.caffemodel").layer if layer.blobs] == [
            "Convolution",
            "InnerProduct",
        ]
    else:
        convert(tmp_path / "new.caffemodel.h5", tmp_path / "back.caffemodel")
        assert not message(tmp_path / "back.caffemodel").layers
        assert message(tmp_path / "back.caffemodel").layer[-1].type == "InnerProduct"


def test_half_precision_comes_out_as_float32(tmp_path: Path) -> None:
    half = np.linspace(-1, 1, 6).reshape(2, 3).astype("<f2")
    path = raw_model(tmp_path / "half.caffemodel", [raw(half, 2)])
    for name in ("a.caffemodel", "a.caffemodel.h5"):
        convert(path, tmp_path / name)
        assert same(read_model(tmp_path / name).layers["ip"], {0: half.astype(np.float32)})
    assert list(message(tmp_path / "a.caffemodel").layer[0].blobs[0].data) == half.astype(np.float32).flatten().tolist()


def test_an_old_states_axes_are_the_nets_to_tell(tmp_path: Path) -> None:
    state = SolverState(iter=3, learned_net="m")
    put(state.history.add(), values((1, 1, 5, 4)))
    (tmp_path / "s.solverstate").write_bytes(state.SerializeToString())
    with pytest.raises(ForceregError, match="its history has blobs of four axes"):
        convert(tmp_path / "s.solverstate", tmp_path / "s.solverstate.h5")
    assert not (tmp_path / "s.solverstate.h5").exists()


def test_what_other_forks_say_of_layers_stays_in_binary_files(tmp_path: Path) -> None:
    """Fields that no schema of ours has."""
    net = parse_text('layer { name: "ip" type: "InnerProduct" }', NetParameter)
    blob = BlobProto(shape={"dim": [2]}, data=[1, 2])
    layer = net.layer[0].SerializeToString() + b"\x3a" + bytes([blob.ByteSize()]) + blob.SerializeToString()
    layer += b"\xc2\x3e\x03abc"  # field 1000
    (tmp_path / "m").write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    convert(tmp_path / "m", tmp_path / "n.caffemodel")
    assert b"\xc2\x3e\x03abc" in (tmp_path / "n.caffemodel").read_bytes()


# -- the command, and what it refuses


def test_the_command(tmp_path: Path, run_cli: RunCli) -> None:
    net = load_net(OLD_NET, seed=1)
    blobs = {name: {i: blob.detach().numpy() for i, blob in enumerate(own)} for name, own in net.params.items()}
    write_model(tmp_path / "m.caffemodel.h5", blobs, attrs={"forcereg_net": OLD_NET})
    write_state(tmp_path / "m.solverstate.h5", 3, 0, "m.caffemodel.h5", [np.ones(4)], EXTRA)
    done = run_cli("convert", "m.caffemodel.h5", "n.caffemodel", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "wrote n.caffemodel: a model in binary, 4 blobs of 53 values\n"
    done = run_cli("convert", "m.solverstate.h5", "n.solverstate", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "m.solverstate.h5: its weights are m.caffemodel.h5",
        "wrote n.solverstate: a solver state in binary, 1 blobs of 4 values",
    ]
    assert message(tmp_path / "n.caffemodel") == message_of(net, blobs)


def message_of(net: Any, blobs: Any) -> Any:
    made = net_message(net.spec)
    for layer in made.layer:
        for array in blobs[layer.name].values():
            blob = layer.blobs.add(data=array.flatten())
            blob.shape.dim.extend(array.shape)
        layer.phase = 0
    return made


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        pytest.param(("m.caffemodel.h5", "m.caffemodel.h5"), 2, "is the file to convert; give another name", id="same"),
        pytest.param(("m.caffemodel.h5", "./m.caffemodel.h5"), 2, "is the file to convert", id="same-by-another-path"),
        pytest.param(("m.caffemodel.h5", "link.caffemodel"), 2, "is the file to convert", id="same-by-a-link"),
        pytest.param(("m.caffemodel.h5", "m.txt"), 2, "expected a name that ends in .caffemodel.h5, ", id="ending"),
        pytest.param(("m.caffemodel.h5", "m.solverstate"), 2, "is a model; give a name that ends as one", id="model"),
        pytest.param(("s.solverstate", "s.caffemodel"), 2, "is a solver state; give a name that ends", id="state"),
        pytest.param(
            ("s.solverstate", "t.solverstate.h5", "--model", "net.prototxt"), 2, "leave out --model", id="net"
        ),
        pytest.param(("gone.h5", "m.caffemodel"), 1, "cannot read gone.h5", id="absent"),
        pytest.param(("net.prototxt", "m.caffemodel"), 1, "this is text; expected a snapshot", id="a-net"),
        pytest.param(("bad.caffemodel", "m.caffemodel"), 1, "bad.caffemodel: damaged or truncated", id="damaged"),
        pytest.param(("m.caffemodel.h5", "gone/m.caffemodel"), 1, "there is no folder ", id="folder"),
        pytest.param(
            ("clash.caffemodel", "c.caffemodel.h5"), 1, "may not be called 'ip/0' beside 'ip'", id="hdf5-name"
        ),
        pytest.param(("gap.h5", "g.caffemodel"), 1, "layer 'ip' holds blobs [1] and not all before them", id="gap"),
    ],
)
def test_what_cannot_be(
    args: tuple[str, ...], code: int, expected: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layers = numbered({"ip": [np.ones((2, 3))]})
    write_model("m.caffemodel.h5", layers)
    write_model("gap.h5", {"ip": {1: np.ones(2, np.float32)}})
    write_model("clash.caffemodel", numbered({"ip": [np.ones(1)], "ip/0": []}), None, None, net_of(["ip", "ip/0"]))
    write_state("s.solverstate", 1, 0, "m", [], EXTRA, binary=True)
    Path("net.prototxt").write_text(OLD_NET)
    write_model("bad.caffemodel", layers, None, None, net_of(layers))
    Path("bad.caffemodel").write_bytes(Path("bad.caffemodel").read_bytes().replace(b"InnerP", b"innerp"))
    Path("link.caffemodel").symlink_to("m.caffemodel.h5")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    found, out, err = cli("convert", *args)
    assert (found, out) == (code, "") and expected in said(err)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_than_a_message_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "m.h5", numbered({"ip": [np.ones(1000)]}))
    monkeypatch.setattr(binary, "LIMIT", 4000)
    with pytest.raises(
        ForceregError, match=r"a binaryproto file 4,000 at most; .* or write a file whose name ends in \.h5"
    ):
        convert(tmp_path / "m.h5", tmp_path / "m.caffemodel")
    convert(tmp_path / "m.h5", tmp_path / "n.h5")
    assert not (tmp_path / "m.caffemodel").exists()


def test_the_python_call(tmp_path: Path) -> None:
    write_model(tmp_path / "m.h5", numbered({"ip": [np.ones((2, 3))]}))
    done = convert(tmp_path / "m.h5", tmp_path / "m.caffemodel", parse_net(OLD_NET))
    assert (done.kind, done.format, done.blobs, done.values, done.remarks) == ("model", "binary", 1, 6, ())
    assert isinstance(read(tmp_path / "m.caffemodel"), ModelFile) and not isinstance(read(tmp_path / "m.h5"), StateFile)
    with pytest.raises(UsageError):
        convert(tmp_path / "m.h5", tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert list(file["data"]) == ["ip"]
