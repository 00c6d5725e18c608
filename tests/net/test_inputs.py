"""What a net is called with: blobs by name, or the only one by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from tests.small_nets import inputs, ip

ONE = f"{inputs(data=(2, 3))}\n{ip('ip', 'data', 'y', 4)}"
TWO = f'name: "two" {inputs(data=(2, 3), label=(2,))}\n{ip("ip", "data", "y", 4)}'


def test_the_only_input_goes_by_itself() -> None:
    net = load_net(ONE, seed=1)
    x = torch.rand(2, 3)
    wanted = net(data=x)
    for given in (x, x.numpy(), x.tolist(), {"data": x}):
        found = net(given)
        assert list(found) == ["y"]
        torch.testing.assert_close(found["y"], wanted["y"], rtol=0, atol=0)
    assert list(net(x, blobs=["data"])) == ["y", "data"]
    assert torch.equal(torch.nn.Sequential(net)(x)["y"], wanted["y"])


def test_several_need_names() -> None:
    net = load_net(TWO)
    with pytest.raises(ForceregError) as error:
        net(torch.rand(2, 3))
    assert str(error.value) == "net 'two' has 2 inputs; give each by its name: net(data=..., label=...)"
    with pytest.raises(ForceregError, match=r"net\(data=..., \*\*\{'a/b': ...\}\)"):
        load_net(TWO.replace('"label"', '"a/b"'))(torch.rand(2, 3))


@pytest.mark.parametrize(
    ("given", "named", "error"),
    [
        (torch.rand(2, 3), {"data": torch.rand(2, 3)}, "input 'data' of net '' is given twice; give it once"),
        (torch.rand(3), {}, "input 'data' has shape [3]; expected 2 axes like [2, 3]"),
        ("x", {}, "input 'data' is a str; expected a tensor"),
        (None, {"dat": np.zeros((2, 3))}, "net '' has no input blob 'dat'; did you mean \"data\"?"),
    ],
)
def test_wrong_inputs(given: object, named: dict[str, object], error: str) -> None:
    with pytest.raises(ForceregError) as found:
        load_net(ONE)(given, **named)
    assert str(found.value) == error
