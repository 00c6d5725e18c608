"""What caffe keeps for a process: modes, seeds, the log, the timer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forcereg.pycaffe as caffe
from forcereg.pycaffe.state import ArgumentError
from tests.pycaffe.nets import DEPLOY, net_of


def test_seeds(tmp_path: Path) -> None:
    found = []
    for seed in (1, 1, 2, np.int64(1)):
        caffe.set_random_seed(seed)
        net = net_of(DEPLOY, tmp_path)
        again = net_of(DEPLOY, tmp_path)
        assert not np.array_equal(net.params["conv"][0].data, again.params["conv"][0].data)
        found.append(net.params["conv"][0].data)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[3])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("seed", "kind"), [(-1, OverflowError), (1 << 32, OverflowError), (1.0, ArgumentError), ("1", ArgumentError)]
)
def test_seeds_that_are_none(seed: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        caffe.set_random_seed(seed)


def test_modes(deploy: Any) -> None:
    caffe.set_mode_cpu()
    caffe.set_device(0)
    deploy.forward()
    with pytest.raises(RuntimeError):
        caffe.set_device(-1)
    with pytest.raises(ArgumentError, match=r"set_device\(str\)"):
        caffe.set_device("0")


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_a_gpu_that_is_not_there_is_told_once(deploy: Any, capfd: pytest.CaptureFixture[str]) -> None:
    caffe.set_mode_gpu()
    caffe.set_device(0)
    deploy.forward()
    deploy.forward()
    assert capfd.readouterr().err.count("running on the CPU") == 1


def test_solvers_of_several_processes() -> None:
    assert (caffe.solver_count(), caffe.solver_rank(), caffe.multiprocess(), caffe.has_nccl()) == (1, 0, False, False)
    caffe.set_solver_count(2)
    caffe.set_solver_rank(1)
    caffe.set_multiprocess(True)
    assert (caffe.solver_count(), caffe.solver_rank(), caffe.multiprocess()) == (2, 1, True)
    with pytest.raises(RuntimeError, match="torchrun"):
        caffe.NCCL.new_uid()


def test_names() -> None:
    assert (caffe.TRAIN, caffe.TEST) == (0, 1) and caffe.__version__ == "1.0.0"
    types = caffe.layer_type_list()
    assert list(types) == sorted(types) and {"Python", "Convolution", "Data", "Input", "Split"} <= set(types)
    assert "Python" in types
    for name in caffe.__all__:
        getattr(caffe, name)
    with pytest.raises(AttributeError, match="none"):
        caffe.none  # noqa: B018


def test_timer() -> None:
    timer = caffe.Timer()
    assert timer.ms == 0
    timer.start()
    timer.stop()
    assert timer.ms == timer.ms >= 0


@pytest.mark.parametrize(("level", "said"), [("0", True), ("1", False), ("", True)])
def test_the_log(level: str, said: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """GLOG_minloglevel counts until init_log says otherwise."""
    monkeypatch.setenv("GLOG_minloglevel", level)
    caffe.log("hello")
    err = capfd.readouterr().err
    assert ("hello" in err) == said and (not said or err.startswith("I"))


def test_init_log(capfd: pytest.CaptureFixture[str]) -> None:
    caffe.init_log()
    caffe.log("one")
    caffe.init_log(2, True)
    caffe.log("two")
    assert "one" in (err := capfd.readouterr().err) and "two" not in err
