"""Convolutions without their zeros: every form equals the dense one, whatever the geometry."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers import sparse
from forcereg.layers.convolve import Geometry, convolve
from forcereg.layers.sparse.layout import Layout
from forcereg.net.load import load_net
from forcereg.registry import sparse_form
from forcereg.study.sparse import execute
from tests.golden_cases import Case, golden_cases
from tests.small_nets import inputs

HAS_NUMBA = importlib.util.find_spec("numba") is not None
FORMS = [
    pytest.param(form, marks=pytest.mark.skipif(form == "direct" and not HAS_NUMBA, reason="numba isn't installed"))
    for form in ("ccnmm", "csr", "direct")
]
NET = inputs(data=(2, 4, 6, 6)) + (
    'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
    "convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: 'xavier' } MODE } }"
)


def weights(shape: tuple[int, ...], share: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, of which about that share isn't 0."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=dtype) * (torch.rand(shape, generator=draw) < share)


def check(form: str, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, group: int) -> None:
    """As the golden layers: within 1e-5 of the largest value, at least 1; in float64 within 1e-12."""
    exact = convolve(x.double(), weight.double(), None if bias is None else bias.double(), geometry, group)
    found = sparse.make(form, weight, geometry, group)(x, bias)
    assert found.dtype == x.dtype and found.shape == exact.shape
    bound = (1e-5 if x.dtype == torch.float32 else 1e-12) * max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=bound)


AXIS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(0, 5))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(
    axes=st.tuples(AXIS, AXIS),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 10), st.integers(1, 3)),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    last=st.booleans(),
    bias=st.booleans(),
)
def test_equals_dense(form: str, axes: tuple, sizes: tuple, share: float, last: bool, bias: bool) -> None:
    """Kernels, strides, pads beyond the input, dilations, groups, empty rows, columns, filters and layers."""
    kernel, stride, pad, dilation, more = zip(*axes, strict=True)
    geometry = Geometry(kernel, stride, pad, dilation)
    # at most 60 output positions: each number of vectors is compiled for itself
    size = [max(1, e - 2 * p) + m for e, p, m in zip(geometry.extent, pad, more, strict=True)]
    count, group, channels, filters = sizes[0], sizes[1], sizes[2], sizes[3]
    x = torch.randn((count, group * channels, *size), generator=torch.Generator().manual_seed(1))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = weights((group * filters, channels, *kernel), share)
    check(form, x, weight, torch.linspace(-1, 1, len(weight)) if bias else None, geometry, group)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "size", "settings", "group"),
    [
        pytest.param((70, 40, 3, 3), (13, 13), (1, 1, 1), 1, id="alexnet-conv3"),  # one full tile, two tasks of filters
        pytest.param((8, 6, 5, 5), (27, 27), (1, 2, 1), 2, id="alexnet-conv2"),  # several tiles
        pytest.param((4, 3, 11, 11), (63, 63), (4, 0, 1), 1, id="alexnet-conv1"),  # 16 planes
    ],
)
def test_layers_of_alexnet(form: str, shape: tuple, size: tuple, settings: tuple, group: int) -> None:
    stride, pad, dilation = ((value, value) for value in settings)
    x = torch.randn((2, shape[1] * group, *size), generator=torch.Generator().manual_seed(2))
    check(form, x, weights(shape, 0.2), torch.ones(shape[0]), Geometry(shape[2:], stride, pad, dilation), group)


@pytest.mark.parametrize("form", FORMS)
def test_rows_wider_than_their_distance_go_on_in_the_next_tile(form: str) -> None:
    geometry, x = Geometry((1, 1), (1, 1), (6, 6), (1, 1)), torch.ones((1, 3, 40, 2))
    layout = Layout(geometry, (40, 2))
    assert layout.out[1] > layout.row
    check(form, x, torch.ones((4, 3, 1, 1)), torch.ones(4), geometry, 1)


@pytest.mark.parametrize("form", FORMS)
def test_float64_is_computed_in_float64(form: str) -> None:
    x = torch.randn((1, 4, 6, 6), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight = weights((3, 4, 3, 3), 0.3, dtype=torch.float64)
    check(form, x, weight, None, Geometry((3, 3), (1, 1), (1, 1), (1, 1)), 1)


@pytest.mark.parametrize("form", FORMS)
def test_one_form_takes_inputs_of_several_sizes(form: str) -> None:
    geometry, weight = Geometry((3, 3), (1, 1), (1, 1), (1, 1)), weights((3, 2, 3, 3), 0.5)
    made = sparse.make(form, weight, geometry, 1)
    for size in ((5, 7), (7, 5), (5, 7)):
        x = torch.randn((1, 2, *size), generator=torch.Generator().manual_seed(size[0]))
        torch.testing.assert_close(made(x, None), convolve(x, weight, None, geometry, 1), rtol=0, atol=1e-5)


@pytest.mark.skipif(not HAS_NUMBA, reason="numba isn't installed")
def test_threads_share_the_work_without_a_difference() -> None:
    geometry, weight = Geometry((3, 3), (1, 1), (1, 1), (1, 1)), weights((130, 9, 3, 3), 0.3)
    x, before = torch.randn((3, 9, 7, 7), generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    made, found = sparse.make("direct", weight, geometry, 1), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(made(x, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    # several of Python's own threads at once
    others = [threading.Thread(target=lambda: found.append(made(x, None))) for _ in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert len(found) == 7 and all(torch.equal(found[0], one) for one in found)


@given(axes=st.tuples(AXIS, AXIS), positions=st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_every_offset_leaves_room(axes: tuple, positions: int) -> None:
    """The kernel reads without looking: from every weight's offset on there are as many values as it was promised."""
    kernel, stride, pad, dilation, more = zip(*axes, strict=True)
    geometry = Geometry(kernel, stride, pad, dilation)
    size = [max(1, e - 2 * p) + m for e, p, m in zip(geometry.extent, pad, more, strict=True)]
    layout = Layout(geometry, (size[0], size[1]))
    wide = (layout.out[0] - 1) * layout.row + layout.out[1]
    read = max(wide, positions)
    channel, r, s = torch.ones(3, *kernel).nonzero(as_tuple=True)
    offsets = layout.offsets(channel, r, s)
    assert int(offsets.min()) >= 0 and int(offsets.max()) + read <= layout.fill(torch.ones(1, 3, *size), read).shape[1]


@pytest.mark.skipif(not HAS_NUMBA, reason="numba isn't installed")
def test_the_inner_loop_multiplies_and_adds_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many multiply-adds as a tile has vectors, each of a whole register and with the input in memory."""
    from forcereg.layers.sparse import kernel
    from forcereg.layers.sparse.vectors import BYTES

    # code from the cache can't be looked at
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loops, before = kernel.loops.__wrapped__(3), kernel.config.CACHE_DIR
    x, out = np.ones(99, np.float32), np.empty((1, 1, 1, 20), np.float32)
    loops(out, x, 99, x[:2], np.array([1, 5], np.int32), np.array([0, 2]), x[:1], 20, 0, 1)
    assert np.all(out == 3)
    (code,) = loops.inspect_asm().values()
    register = {64: "%zmm", 32: "%ymm"}[BYTES]
    fused = [line for line in code.splitlines() if "vfmadd" in line and register in line and "(" in line]
    assert platform.machine() != "x86_64" or len(fused) >= 3
    assert list((tmp_path / "forcereg" / "numba").rglob("*.nbc")) and before == kernel.config.CACHE_DIR


def test_weights_that_change_are_seen() -> None:
    dense, net = (load_net(NET.replace("MODE", f"conv_mode: {mode}"), seed=1) for mode in ("GEMM", "LOWERED_CCNMM"))
    x = torch.ones(2, 4, 6, 6)
    with torch.no_grad():
        for _ in range(2):
            for one in (dense, net):
                one.params["conv"][0][1:3] *= -0.5
            torch.testing.assert_close(net(x)["conv"], dense(x)["conv"], rtol=0, atol=1e-6)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            other.params["conv"][0].zero_()
            assert not other(x)["conv"].any() and net(x)["conv"].any()


def test_backward_is_refused() -> None:
    net = load_net(NET.replace("MODE", "conv_mode: CCNMM"), seed=1)
    y = net(torch.ones(2, 4, 6, 6))["conv"]
    with pytest.raises(ForceregError, match="layer 'conv': a sparse conv_mode has no backward pass"):
        y.sum().backward()


def test_recorded_nets_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written for other programs has one convolution for each layer."""
    net, x = load_net(NET.replace("MODE", "conv_mode: CCNMM"), seed=1), torch.ones(2, 4, 6, 6)
    monkeypatch.setattr("forcereg.layers.weighted.recording", lambda: True)
    net(x)["conv"].sum().backward()
    assert net.params["conv"][0].grad is not None


def test_what_a_form_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Geometry((3,), (1,), (0,), (1,))
    with pytest.raises(ForceregError, match="ccnmm can't run it: it takes 2 spatial axes, here are 1"):
        sparse.make("ccnmm", torch.ones(1, 1, 3), one, 1)
    two = Geometry((1, 1), (1, 1), (0, 0), (1, 1))
    with pytest.raises(ForceregError, match=r"csr can't run it: it takes float32 and float64, here is torch\.bfloat16"):
        sparse.make("csr", torch.ones(1, 1, 1, 1, dtype=torch.bfloat16), two, 1)
    with pytest.raises(ForceregError, match="unknown sparse form 'crs'; did you mean"):
        sparse.Sparse("crs")
    flat = load_net(NET.replace("dim: 6 dim: 6", "dim: 6").replace("MODE", "conv_mode: CCNMM"))
    with pytest.raises(ForceregError, match="layer 'conv': ccnmm can't run it: it takes 2 spatial axes, here are 1"):
        flat(torch.ones(2, 4, 6))
    monkeypatch.setattr("forcereg.layers.sparse.form.find_spec", lambda name: None)
    with pytest.raises(ForceregError, match=r'direct needs numba; install with pip install "forcereg\[sparse\]"'):
        sparse.make("direct", torch.ones(1, 1, 1, 1), two, 1)
    assert sorted(sparse_form) == ["ccnmm", "csr", "direct"]


@pytest.mark.parametrize("form", ["conv_mode", *FORMS])
@pytest.mark.parametrize("case", golden_cases("sparse", lambda case: case.attrs["kind"] == "forward"))
def test_recorded_nets(case: Case, form: str) -> None:
    """What the branch computed, densely and squeezed, whichever form runs."""
    x = torch.from_numpy(case.load("inputs/data"))
    for text, recorded in (("net", "gemm"), ("net_ccnmm", "ccnmm")):
        net = load_net(case.attrs[text])
        with torch.no_grad():
            for name, blobs in case.tree("params").items():
                net.params[name.split("/")[0]][int(name.split("/")[1])].copy_(torch.from_numpy(blobs))
        if form != "conv_mode":
            execute(net, form)
        expected = case.tree(recorded)
        with torch.no_grad():
            found = net(x, blobs=list(expected))
        for name, values in expected.items():
            torch.testing.assert_close(found[name], torch.from_numpy(values), rtol=0, atol=1e-5)


GPU = """
import torch
from forcereg.layers import sparse
from forcereg.layers.convolve import Geometry, convolve
from forcereg.layers.sparse import gpu
from forcereg.layers.sparse.layout import Layout

torch.manual_seed(0)
for geometry, size, group in (
    (Geometry((3, 3), (1, 1), (1, 1), (1, 1)), (17, 17), 2),  # two tiles
    (Geometry((2, 1), (2, 1), (0, 3), (1, 1)), (5, 2), 1),  # padding wider than a row
    (Geometry((3, 3), (2, 2), (1, 1), (2, 2)), (9, 12), 1),
):
    weight, layout = torch.randn(4, 2, *geometry.kernel), Layout(geometry, size)
    weight *= torch.rand(weight.shape) < 0.4
    form = sparse.direct.Direct(weight, geometry, group)
    form._sizes = lambda layout, positions: (2, -(-positions // gpu.TILE) * gpu.TILE)
    form._place(layout)
    x, bias, y = torch.randn(2, 2 * group, *size), torch.arange(4.0), torch.full((2, 4, *layout.out), torch.nan)
    gpu.run(y, layout.fill(x, form._read), *form._weights, bias, row=layout.row)
    torch.testing.assert_close(y, convolve(x, weight, bias, geometry, group), rtol=0, atol=1e-5)
"""


def test_the_kernel_for_gpus() -> None:
    """By Triton's interpreter: what it computes. How it compiles only a GPU tells."""
    pytest.importorskip("triton")
    # read when Triton is imported
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", GPU], env=environment, check=True)
