"""BatchNorm's running sums: added to for all layers at once, bit for bit what each adds by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg.layers.norm import BatchNorm, RunningSums
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.solver.loop import Solver
from tests.layers.nets import noise
from tests.solver.graphs import on_device, trained
from tests.solver.nets import Recorder, write_solver
from tests.solver.tape import Tape


def norm(name: str, bottom: str, param: str = "") -> str:
    """A BatchNorm with its Scale and ReLU behind a convolution."""
    return f"""
    layer {{ name: "{name}_conv" type: "Convolution" bottom: "{bottom}" top: "{name}_conv" convolution_param {{
      num_output: 3 kernel_size: 3 pad: 1 bias_term: false weight_filler {{ type: "xavier" }} }} }}
    layer {{ name: "{name}" type: "BatchNorm" bottom: "{name}_conv" top: "{name}" {param} }}
    layer {{ name: "{name}_scale" type: "Scale" bottom: "{name}" top: "{name}" scale_param {{ bias_term: true }} }}
    layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}"""


def net(*layers: str, blob: str) -> str:
    return f"""
    layer {{ name: "in" type: "Input" top: "x" top: "y" input_param {{
      shape {{ dim: 4 dim: 2 dim: 5 dim: 5 }} shape {{ dim: 4 dim: 2 }} }} }}
    {"".join(layers)}
    layer {{ name: "ip" type: "InnerProduct" bottom: "{blob}" top: "ip" inner_product_param {{ num_output: 2
      weight_filler {{ type: "xavier" }} }} }}
    layer {{ name: "flat" type: "BatchNorm" bottom: "ip" top: "flat" }}
    layer {{ name: "loss" type: "EuclideanLoss" bottom: "flat" bottom: "y" top: "loss" }}"""


SHARED = "param { name: 'm' } param { name: 'v' } param { name: 'f' }"
NETS = {
    "two": net(norm("a", "x"), norm("b", "a"), blob="b"),
    "fractions": net(norm("a", "x", "batch_norm_param { moving_average_fraction: 0.9 }"), norm("b", "a"), blob="b"),
    "frozen": net(norm("a", "x", "batch_norm_param { use_global_stats: true }"), norm("b", "a"), blob="b"),
    "shared": net(norm("a", "x", SHARED), norm("b", "a", SHARED), blob="b"),
    "shared-and-read": net(
        norm("a", "x", SHARED), norm("b", "a", f"{SHARED} batch_norm_param {{ use_global_stats: true }}"), blob="b"
    ),
}


def inputs(iteration: int, sub: int) -> dict[str, Tensor]:
    x, y = noise(4, 2, 5, 5, seed=2 * iteration), noise(4, 2, seed=2 * iteration + 1)
    return {"x": (x + sub).float(), "y": y.float()}


@contextlib.contextmanager
def each_by_itself() -> Iterator[None]:
    """Every layer adds what it found in the forward, as a module alone does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunningSums, "behind", lambda self: contextlib.nullcontext())
        yield


SETTINGS = {"": {}, "iter_size: 3": {}, "debug_info: true": {}, "momentum: 0.5": {"amp": "bf16"}}
CASES = [(name, "") for name in NETS] + [("two", extra) for extra in SETTINGS if extra]


@pytest.mark.parametrize(("name", "extra"), CASES)
def test_all_at_once_is_bit_for_bit_one_by_one(name: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NETS[name])
    extra, options = f"max_iter: 7 snapshot_after_train: false {extra}", SETTINGS[extra]
    found = trained(tmp_path, None, extra, inputs, **options)
    with each_by_itself():
        found.assert_equals(trained(tmp_path, None, extra, inputs, **options))
    layers = [module for _, module in found.solver.net.built if isinstance(module, BatchNorm)]
    assert [layer.sums is None for layer in layers] == ["shared" in name] * 2 + [False]


@pytest.mark.parametrize("name", NETS)
def test_in_graphs_too(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NETS[name])
    extra, tape = "max_iter: 7 snapshot_after_train: false", Tape()
    trained(tmp_path, tape, extra, inputs).assert_equals(trained(tmp_path, None, extra, inputs))
    assert tape.recorded == 1 and tape.replayed > 0


def test_two_operations_more_for_a_layer(tmp_path: Path) -> None:
    """Its statistics cost none of their own: what grows with the net is the normalisation, there and back."""

    def length(count: int) -> int:
        norms = [norm(f"n{i}", f"n{i - 1}" if i else "x") for i in range(count)]
        (tmp_path / "net.prototxt").write_text(net(*norms, blob=f"n{count - 1}"))
        tape = Tape()
        with on_device(tape):
            Solver(write_solver(tmp_path, ""), observers=[Recorder()]).step(5, inputs)
        return tape.lengths[0]

    with each_by_itself():
        alone = length(4) - length(2)
    together = length(4) - length(2)
    assert alone - together == 2 * 6


def made(**options: Any) -> Net:
    return load_net(NETS["two"], phase="TRAIN", seed=1, **options)


def sums(of: Net) -> list[list[float]]:
    return [blob.flatten().tolist() for name in ("a", "b", "flat") for blob in of.params[name]]


def test_two_passes_before_a_backward() -> None:
    """What a pass leaves for its backward, the next doesn't overwrite."""
    net, data = made(), [inputs(i, 0) for i in range(2)]
    (net(data[0])["loss"] + net(data[1])["loss"]).backward()
    found = [blob.grad for blob in net.parameters()]
    apart = made()
    for one in data:
        apart(one)["loss"].backward()
    for grad, other in zip(found, apart.parameters(), strict=True):
        torch.testing.assert_close(grad, other.grad)
    assert sums(net) == sums(apart)


def test_a_pass_that_fails_adds_nothing() -> None:
    net = made()
    before = sums(net)
    broken = {**inputs(0, 0), "y": torch.zeros(3, 2)}
    with pytest.raises(Exception, match="loss"):
        net(broken)
    assert sums(net) == before
    net(inputs(0, 0))
    other = made()
    other(inputs(0, 0))
    assert sums(net) == sums(other)


def test_a_layer_called_alone_adds_at_once() -> None:
    net = made()
    net.module("a")(noise(4, 3, 5, 5).float())
    assert net.params["a"][2].item() == 1 and net.params["b"][2].item() == 0
