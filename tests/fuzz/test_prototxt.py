"""Nets and solvers by chance, text and binary: each works or is refused in one line of our own words."""

from __future__ import annotations

import random
import re
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forcereg.net.module
import forcereg.solver.loop  # noqa: F401
from forcereg.errors import LONGEST, ForceregError
from forcereg.net.load import shape_net
from forcereg.schema import NetParameter
from forcereg.schema.text import parse_net, read_net, read_solver
from forcereg.solver.setup import problems, solver_root, solver_specs
from forcereg.system.shipped import configs_dir
from tests.fuzz.prototxts import any_token, damaged, encoded, made_net
from tests.long_forms import Rounds

GROWTH = 600 << 20
"""Bytes that all rounds together may add to the process's peak of memory."""
RUNTIME = re.compile(
    r"Message type|field named|Expected|Couldn't|tokeniz|google\.protobuf|descriptor|octal float|_pb2|codec|Traceback|"
    r"internal error|object has no|Invalid value|object at 0x",
)
WHOLE_FILE = re.compile(r"the net has no layers|no layer is left|neither prototxt|an? [^,]*, expected a net")
"""What is wrong with a net's file as a whole has no line."""

SMALL = ("examples/mnist/lenet.prototxt", "examples/mnist/lenet_train_test_force.prototxt")
SHIPPED = (*SMALL, "examples/cifar10/cifar10_full_train_test_force.prototxt", "models/alexnet/train_val.prototxt")
SOLVERS = ("examples/mnist/lenet_force_solver.prototxt", "models/googlenet/solver.prototxt")
OLD = """name: "old" input: "data" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8
layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } include { stage: "s0" } }
layers { name: "r" type: RELU bottom: "c" top: "c" }
layers { name: "p" type: POOLING bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
"""
OLDEST = """name: "oldest" input: "data" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8
layers { layer { name: "pad" type: "padding" pad: 1 } bottom: "data" top: "pad" }
layers { layer { name: "c" type: "conv" num_output: 4 kernelsize: 3 stride: 1 biasterm: true } bottom: "pad" top: "c" }
layers { layer { name: "r" type: "relu" } bottom: "c" top: "c" }
"""
FORK = """name: "fork" default_forward_type: FLOAT16
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [2, 3, 8, 8] } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" forward_type: FLOAT
  convolution_param { num_output: 4 kernel_size: 3 engine: MKL2017 weight_filler { type: "xavier" } } }
layer { name: "p" type: "Permute" bottom: "c" top: "p" include { phase: TEST } alpha: [0.5]
  permute_param { order: 0 order: 2 box < x: -1 y: 'a' "b" > engine: CAFFE } image_data_param { label_type: NONE } }
"""
SHAPES = {"data": (2, 3, 227, 227), "label": (2,)}


@pytest.fixture(autouse=True)
def _bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own; the memory that the rounds take is bounded."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < GROWTH


def attempt(action: Callable[[], Any], *files: str, lines: bool = True) -> str:
    """The error, '' if there is none; checks its form: one line, which opens with one of the files (and `lines`)."""
    try:
        action()
    except ForceregError as error:
        text = str(error)
    else:
        return ""
    assert text.isprintable() and 0 < len(text) <= LONGEST, text
    assert text.startswith((*files, *map(repr, files))) or re.match(r"'.*': cannot be read", text), text
    assert not RUNTIME.search(text), text
    assert not lines or re.match(r"'?\S+?:\d+:", text) or WHOLE_FILE.search(text), text
    return text


def shaped(chance: random.Random, path: str) -> None:
    """Both phases of a net, or one of them, in any state."""
    file = read_net(path)
    stages = chance.choice(((), ("s0",), ("s1",), ("s0", "s1")))
    for phase in chance.choice((("TRAIN",), ("TEST",), ("TRAIN", "TEST"))):
        shape_net(file, phase, chance.choice((0, 0, 1, -1)), stages, input_shapes=given(file.message))


def given(net: Any) -> dict[str, tuple[int, ...]]:
    """Shapes for the tops that the shipped nets get from databases."""
    sources = {top for layer in net.layer if layer.type == "Data" and len(layer.top) == 2 for top in layer.top}
    shape = (2, 1, 28, 28) if "lenet" in net.name.lower() else SHAPES["data"]
    return {"data": shape, "label": (2,)} if sources == set(SHAPES) else {}


def any_text(chance: random.Random) -> str:
    kind = chance.randrange(9)
    if kind < 4:
        return made_net(chance)
    if kind < 6:
        return (configs_dir() / chance.choice(SHIPPED)).read_text()
    return (OLD, OLDEST, FORK)[kind - 6]


def test_nets(rounds: Rounds) -> None:
    works = 0
    for chance in rounds(400):
        text = any_text(chance)
        data = encoded(chance, damaged(chance, text) if chance.random() < 0.9 else text)
        Path("n.prototxt").write_bytes(data)
        works += not attempt(lambda: shaped(chance, "n.prototxt"), "n.prototxt", "<n.prototxt>")  # noqa: B023
    assert works > 10


def test_every_problem(rounds: Rounds) -> None:
    """What is refused has problems that are told, and the rest can be read; what is right has none."""
    for chance in rounds(200):
        text = damaged(chance, chance.choice((FORK, FORK, OLD, made_net(chance))))
        problems: list[ForceregError] = []
        refused = attempt(lambda: parse_net(text, "n"), "n")  # noqa: B023
        left = attempt(lambda: parse_net(text, "n", problems.append), "n")  # noqa: B023
        assert bool(refused) == bool(problems or left), (text, refused, left)
        for problem in problems:

            def tell() -> None:
                raise problem  # noqa: B023

            attempt(tell, "n")


def test_undamaged_nets(rounds: Rounds) -> None:
    """What the schema allows is refused with the layer's line, if at all."""
    for chance in rounds(150):
        Path("n.prototxt").write_text(made_net(chance))
        text = attempt(lambda: shaped(chance, "n.prototxt"), "n.prototxt")  # noqa: B023
        assert not text or re.match(r"n\.prototxt:\d+", text) or "no layer is left" in text, text


def test_solvers(rounds: Rounds) -> None:
    for chance in rounds(200):
        Path("n.prototxt").write_text((configs_dir() / SMALL[1]).read_text())
        text = (configs_dir() / chance.choice(SOLVERS)).read_text()
        text = re.sub(r'net: "[^"]*"', 'net: "n.prototxt"', text)
        text += chance.choice(("", 'test_state { stage: "s0" }', "net_param { layer { } }", "test_iter: 3"))
        Path("s.prototxt").write_bytes(encoded(chance, damaged(chance, text)))

        def read() -> None:
            file = read_solver("s.prototxt")
            for problem in problems(file.message, file.name):
                raise problem
            solver_root(file)
            solver_specs(file)

        attempt(read, "s.prototxt", "n.prototxt", lines=False)


def binary(chance: random.Random) -> bytes:
    """A NetParameter with weights."""
    net = NetParameter()
    net.CopyFrom(read_net(configs_dir() / SMALL[0]).message)
    for layer in net.layer if chance.random() < 0.3 else ():
        for _ in range(chance.choice((0, 1, 2))):
            layer.blobs.add(data=[0.5] * chance.randrange(20), shape={"dim": [chance.randrange(5)]})
    return bytes(net.SerializeToString())


def spoilt(chance: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled, moved or made large as lengths are."""
    for _ in range(chance.choice((1, 1, 2, 8))):
        at, to = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
        data = chance.choice(
            (
                data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :],
                data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
                data[:to] or data,
                data[:at] + data[at:to] + data[at:],
                data[:at] + data[to:] or data,
                data[:at] + b"\xff\xff\xff\xff\x7f" + data[at + 1 :],
                data[:at] + b"\xff" * 9 + b"\x01" + data[at:],
                data[:at] + chance.randbytes(20) + data[to:],
                data[:at] + b"\x0b" * 200 + data[at:],
            )
        )
    return data


def test_binary_nets(rounds: Rounds) -> None:
    works = 0
    for chance in rounds(300):
        Path("n.caffemodel").write_bytes(spoilt(chance, binary(chance)))
        works += not attempt(lambda: shaped(chance, "n.caffemodel"), "n.caffemodel", lines=False)  # noqa: B023
    assert works


def test_long_texts_are_judged_in_their_length(rounds: Rounds) -> None:
    """One thing over and over, to some 100 KB: neither memory nor the message grows beyond the text."""
    for chance in rounds(12):
        piece = "".join(any_token(chance) + chance.choice(("", " ", "\n")) for _ in range(chance.randint(1, 4))) or "a"
        text = (piece * (100_000 // len(piece.encode("utf-8", "surrogatepass")) + 1))[:100_000]
        Path("n.prototxt").write_bytes(text.encode("utf-8", "surrogatepass"))
        attempt(lambda: shaped(chance, "n.prototxt"), "n.prototxt")  # noqa: B023
