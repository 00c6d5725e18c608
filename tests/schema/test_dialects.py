"""Binary nets of forks whose numbers collide: refused, told apart by what they hold, or read as the caller says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.schema.text import decode_net, parse_net, to_text
from forcereg.schema.wire import FOUR, VARINT, message, varint
from tests.conftest import RunCli


def whole(number: int, value: int) -> bytes:
    return varint(number << 3 | VARINT) + varint(value)


def real(number: int, value: float) -> bytes:
    return varint(number << 3 | FOUR) + struct.pack("<f", value)


def inside(number: int, *parts: bytes) -> bytes:
    return b"".join(map(bytes, message(number, list(parts))))


def layer(*parts: bytes, kind: bytes = b"Convolution") -> bytes:
    return inside(100, inside(1, b"conv1"), inside(2, kind), *parts)


MASKED, GROUPS, MODE = layer(whole(12, 1)), layer(whole(12, 2)), layer(inside(106, whole(21, 1)))
SHAPES, ROWS = layer(inside(6, real(6, 0.5))), layer(inside(6, real(5, 2)))
CONV = "name: 'conv1' type: 'Convolution'"


@pytest.mark.parametrize(
    ("data", "dialect", "read"),
    [
        (MASKED, "ssl", "connectivity_mode: DISCONNECTED_ELTWISE"),
        (MASKED, "skimcaffe", "connectivity_mode: DISCONNECTED_ELTWISE"),
        (MASKED, "force", "display: true"),
        (GROUPS, "ssl", "connectivity_mode: DISCONNECTED_GRPWISE"),
        (SHAPES, "ssl", "param { kernel_shape_decay_mult: 0.5 }"),
        (SHAPES, "force", "param { force_mult: 0.5 }"),
        (ROWS, "skimcaffe", "param { breadth_decay_mult: 2 }"),
        (MODE, "ssl", "convolution_param { conv_mode: LOWERED_CSRMM }"),
        (MODE, "skimcaffe", "convolution_param { conv_mode: LOWERED_CCNMM }"),
    ],
)
def test_a_net_is_read_as_the_caller_says(data: bytes, dialect: str, read: str) -> None:
    assert decode_net(data, "n", dialect) == parse_net(f"layer {{ {CONV} {read} }}").message


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (MASKED, "field 12, 1, may be display of the force fork or connectivity_mode of the SSL branch or SkimCaffe"),
        (GROUPS, "field 12, 2, may be display"),
        (SHAPES, "field 6, 0.5, may be force_mult of the force fork or kernel_shape_decay_mult of"),
        (ROWS, "field 5, 2, may be force_regularize"),
        (MODE, "field 21, 1, may be conv_mode of the SSL branch or SkimCaffe"),
    ],
)
def test_nothing_that_is_unclear_is_guessed(data: bytes, told: str) -> None:
    with pytest.raises(ForceregError) as caught:
        decode_net(data, "net.binary")
    assert str(caught.value).startswith(f"net.binary: layer 'conv1': {told}")
    assert "`forcereg convert net.binary OUT.caffemodel --dialect ssl|force|skimcaffe`" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "dialect", "told"),
    [
        (GROUPS, "force", "field 12, display, is 2"),
        (ROWS, "force", "field 5 has another type than force_regularize"),
        (MODE, "force", "field 21 is none of the force fork"),
        (layer(inside(106, whole(21, 4))), "skimcaffe", "field 21, conv_mode, is 4"),
        (layer(inside(6, inside(5, b""))), "ssl", "field 5 has another type than breadth_decay_mult"),
    ],
)
def test_a_dialect_that_is_evidently_wrong_is_refused(data: bytes, dialect: str, told: str) -> None:
    with pytest.raises(ForceregError, match=f"^n: layer 'conv1': {told}"):
        decode_net(data, "n", dialect)


def test_what_has_no_effect_is_no_collision() -> None:
    data = layer(whole(12, 0), inside(6, real(6, 0)), inside(106, whole(21, 0)))
    assert not decode_net(data, "n").layer[0].display


def test_a_net_with_display_everywhere_is_the_force_forks() -> None:
    data = layer(whole(12, 1), inside(6, real(6, 1))) + layer(whole(12, 1), kind=b"SoftmaxWithLoss")
    net = decode_net(data, "n")
    assert net.layer[0].param[0].force_mult == 1 and net.layer[1].display
    # but not if masks may be all that it is
    with pytest.raises(ForceregError, match="field 12"):
        decode_net(MASKED + layer(whole(12, 1), kind=b"InnerProduct"), "n")


@pytest.mark.parametrize("data", [MASKED[:-1], layer(whole(12, 1), b"\xff"), b"\x00"])
def test_damage_is_told_as_damage(data: bytes) -> None:
    with pytest.raises(ForceregError, match="the file may be damaged"):
        decode_net(data, "n", "ssl")


def test_convert_writes_it_with_our_numbers(tmp_path: Path, run_cli: RunCli) -> None:
    source, target = tmp_path / "ssl.caffemodel", tmp_path / "ours.caffemodel"
    source.write_bytes(layer(whole(12, 2), inside(6, real(6, 1)), inside(7, inside(5, struct.pack("<f", 3)))))
    refused = run_cli("convert", source, target)
    assert refused.returncode == 1 and "field 12, 2, may be" in refused.stderr and not target.exists()
    assert run_cli("convert", source, target, "--dialect", "ssl").returncode == 0
    net = decode_net(target.read_bytes(), "n")
    assert (
        "connectivity_mode: DISCONNECTED_GRPWISE" in to_text(net) and net.layer[0].param[0].kernel_shape_decay_mult == 1
    )
    again = run_cli("convert", target, tmp_path / "b.caffemodel", "--dialect", "force")
    assert again.returncode == 1 and "forcereg wrote this net, with its own numbers" in again.stderr
    unknown = run_cli("convert", source, target, "--dialect", "sssl")
    assert unknown.returncode == 2 and "unknown dialect 'sssl'; did you mean \"ssl\"?" in unknown.stderr
