"""Users' own modules: imported by name, and layer types that installed packages offer as entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forcereg import registry
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.system import plugins
from tests.layers.nets import layer_net, layer_text, run

UserModule = Callable[[str, str], Path]

PACKAGE = """
    import torch

    class Mish(torch.nn.Module):
        def __init__(self, scale=1.0):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return self.scale * torch.nn.functional.mish(x)

    not_a_layer = 3
"""


def install(root: Path, *points: str) -> None:
    """A distribution `fancy` in `root`, which is put on the path, with entry points of the group forcereg.layers."""
    info = root / "fancy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fancy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[forcereg.layers]", *points, ""]))
    sys.path.insert(0, str(root))


@pytest.fixture
def fancy(user_module: UserModule, tmp_path: Path) -> Path:
    """The distribution and its module fancylayers; its folder."""
    path = user_module("fancylayers", PACKAGE)
    install(
        tmp_path,
        "Mish = fancylayers:Mish",
        "Number = fancylayers:not_a_layer",
        "Lost = fancylayers:Lost",
        "Broken = brokenlayers:X",
        "ReLU = brokenlayers:X",
    )
    return path


def test_entry_points_are_listed_and_not_imported(fancy: Path) -> None:
    points = plugins.entry_point_layers()
    assert points["Mish"].value == "fancylayers:Mish"
    assert {"Mish", "Number", "Lost", "Broken"} <= set(points)
    assert "fancylayers" not in sys.modules


def test_an_entry_point_is_a_layer_type(fancy: Path) -> None:
    net = layer_net("Mish", "python_param { param_str: '{\"scale\": 2}' }", (2, 3))
    x = torch.linspace(-2, 2, 6).reshape(2, 3)
    torch.testing.assert_close(run(net, x)[0], 2 * torch.nn.functional.mish(x))
    assert "Mish" in registry.layer
    layer_net("Mish", "", (2, 3))  # known by now


def test_a_module_that_registers_itself(user_module: UserModule, tmp_path: Path) -> None:
    user_module(
        "selflayers",
        """
        import torch
        import forcereg

        @forcereg.layer("Selfish", limits="its own")
        class Selfish(torch.nn.Identity):
            pass
        """,
    )
    install(tmp_path, "Selfish = selflayers:Selfish")
    layer_net("Selfish", "", (2, 3))
    assert registry.layer.about("Selfish").limits == "its own"


def test_built_in_types_win(fancy: Path) -> None:
    assert run(layer_net("ReLU", "", (1,)), torch.tensor([-1.0]))[0].item() == 0


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "Lost",
            "layer type 'Lost' of fancy (fancylayers:Lost): AttributeError: module 'fancylayers' has no attribute",
        ),
        (
            "Broken",
            "layer type 'Broken' of fancy (brokenlayers:X): ModuleNotFoundError: No module named 'brokenlayers'",
        ),
        ("Number", "layer type 'Number' is of type int; expected a torch.nn.Module or forcereg.Layer class"),
        ("Mush", "unknown layer type 'Mush'"),
    ],
)
def test_entry_points_that_fail(fancy: Path, kind: str, text: str) -> None:
    with pytest.raises(ForceregError) as info:
        load_net(layer_text(kind, "", (2, 3)))
    assert str(info.value).startswith(f"<text>:2: layer 'l': {text}") and "\n" not in str(info.value)


def test_import_module_finds_and_keeps_folders(user_module: UserModule, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    user_module("here", "value = 1")
    (inner / "there.py").write_text("value = 2")
    assert plugins.import_module("here").value == 1
    assert plugins.import_module("there", [inner]).value == 2
    assert plugins._late.folders == [str(tmp_path), str(inner)]
    with pytest.raises(ForceregError, match=r"^there is no Python module 'nowhere' on Python's path or in .*inner; "):
        plugins.import_module("nowhere", [inner])


def test_an_exception_of_theirs_whose_text_fails(user_module: UserModule) -> None:
    source = """
    class Odd(Exception):
        def __str__(self): raise RuntimeError

    raise Odd
    """
    user_module("odd", source)
    with pytest.raises(ForceregError, match=r"Python module 'odd' cannot be imported: Odd \(odd.py:5\)"):
        plugins.import_module("odd")


def test_unknown_types_point_to_import() -> None:
    with pytest.raises(
        ForceregError, match=r"; `forcereg layers` lists .* \(Caffe has no .* and give --import MODULE\)$"
    ):
        load_net(layer_text("Zzzzzz", "", (2, 3)))
