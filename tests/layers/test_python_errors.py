"""What is wrong with a Python layer, in one line each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from tests.layers.nets import noise, run
from tests.layers.python_nets import LAYERS, UserModule, python, python_net


def test_refusal() -> None:
    with pytest.raises(ForceregError) as info:
        load_net(python("EuclideanLoss", (4, 3), (4, 3)))
    assert str(info.value) == (
        "<text>:3: layer 'l': type Python runs code that the net names; if you trust the net, give "
        "--allow-python-layers (allow_python_layers=True in Python)"
    )


WRONG = """
    import caffe
    import torch

    class Good(caffe.Layer):
        def setup(self, bottom, top): pass
        def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)
        def forward(self, bottom, top): top[0].data[...] = bottom[0].data
        def backward(self, top, propagate_down, bottom): bottom[0].diff[...] = top[0].diff

    class NoReshape(caffe.Layer):
        def setup(self, bottom, top): pass
        def forward(self, bottom, top): pass

    class Setup(Good):
        def setup(self, bottom, top): raise ValueError("bad\\nluck")

    class Init(Good):
        def __init__(self): pass

    class Reshape(Good):
        def reshape(self, bottom, top): top[0].reshape(bottom[7].count)

    class Forgets(Good):
        def reshape(self, bottom, top): pass

    class Huge(Good):
        def reshape(self, bottom, top): top[0].reshape(1 << 20, 1 << 20)

    class HugeBlob(Good):
        def setup(self, bottom, top): self.blobs.add_blob(1 << 40)

    class Negative(Good):
        def reshape(self, bottom, top): top[0].reshape(-1)

    class Pycaffe(Good):
        def setup(self, bottom, top): caffe.Nets

    class Forward(Good):
        def forward(self, bottom, top): top[0].data[...] = [1, 2, 3, 4, 5]

    class Assigns(Good):
        def forward(self, bottom, top): top[0].data = bottom[0].data

    class Runtime(Good):
        def forward(self, bottom, top): raise RuntimeError("late")

    class LateBlob(Good):
        def forward(self, bottom, top): self.blobs.add_blob(1)

    class Backward(Good):
        def backward(self, top, propagate_down, bottom): 1 / 0

    class Other: pass
    number = 3

    class Exits(Good):
        def setup(self, bottom, top): raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Setup", r"mylayers.Setup.setup raised ValueError: bad luck (mylayers.py:16)"),
        ("Init", r"mylayers.Init raised TypeError: Init.__init__() takes 1 positional argument but 2 were given"),
        ("Exits", "mylayers.Exits.setup raised SystemExit: 3 (mylayers.py:58)"),
        ("Reshape", "mylayers.Reshape.reshape raised IndexError: Index out of range (mylayers.py:22)"),
        ("Forgets", "mylayers.Forgets.reshape gave top[0] no shape; call top[0].reshape(...) there"),
        (
            "Huge",
            "top[0] of mylayers.Huge would have shape [1048576, 1048576], 1,099,511,627,776 values; a blob holds 0 "
            "to 2,147,483,647, use smaller sizes",
        ),
        (
            "HugeBlob",
            "self.blobs[0] would have shape [1099511627776], 1,099,511,627,776 values; a blob holds 0 to "
            "2,147,483,647, use smaller sizes",
        ),
        (
            "Negative",
            "top[0] of mylayers.Negative would have shape [-1]; expected sizes of 0 or more",
        ),
        (
            "Pycaffe",
            "mylayers.Pycaffe.setup raised AttributeError: module 'forcereg.pycaffe' has no attribute 'Nets' "
            "(mylayers.py:37)",
        ),
        (
            "NoReshape",
            "mylayers.NoReshape has no method reshape; a Python layer has setup, reshape, forward and backward",
        ),
        ("Other", "mylayers.Other derives neither from caffe.Layer nor from torch.nn.Module"),
        ("Forwards", "Python module 'mylayers' (PATH) has no class 'Forwards'; did you mean \"Forward\"?"),
        ("number", "Python module 'mylayers' (PATH) has no class 'number'"),
        ("", 'python_param has no layer; set for example python_param { module: "mylayers" layer: "MyLayer" }'),
    ],
)
def test_wrong_when_built(user_module: UserModule, name: str, text: str) -> None:
    path = user_module("mylayers", WRONG)
    with pytest.raises(ForceregError) as info:
        python_net(python(name, (2,)))
    assert str(info.value) == f"<text>:2: layer 'l': {text.replace('PATH', str(path))}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "Forward",
            "forward raised ValueError: could not broadcast input array "
            "from shape (5,) into shape (2,) (mylayers.py:40)",
        ),
        ("Assigns", "forward raised AttributeError: property 'data' of 'Blob' object has no setter (mylayers.py:43)"),
        ("Runtime", "forward raised RuntimeError: late (mylayers.py:46)"),
        (
            "LateBlob",
            "forward raised RuntimeError: add_blob is for setup; the layer's blobs are settled by now (mylayers.py:49)",
        ),
        ("Backward", "backward raised ZeroDivisionError: division by zero (mylayers.py:52)"),
    ],
)
def test_wrong_when_run(user_module: UserModule, name: str, text: str) -> None:
    user_module("mylayers", WRONG)
    net = python_net(python(name, (2,)))
    with pytest.raises(ForceregError) as info:
        run(net, torch.ones(2, requires_grad=True))[0].sum().backward()
    assert str(info.value) == f"<text>:2: layer 'l': mylayers.{name}.{text}"
    assert not isinstance(info.value.__cause__, ForceregError | None)


def test_backward_belongs_to_the_last_forward(user_module: UserModule) -> None:
    user_module("mylayers", LAYERS)
    net = python_net(python("EuclideanLoss", (4, 3), (4, 3)))
    a, b = noise(4, 3).float().requires_grad_(), noise(4, 3, seed=1).float()
    first, second = run(net, a, b)[0], run(net, a, b)[0]
    second.sum().backward()
    with pytest.raises(ForceregError, match=r"^<text>:3: layer 'l': mylayers.EuclideanLoss ran forward again before"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("module", "source", "text"),
    [
        (
            "nowhere",
            None,
            "there is no Python module 'nowhere' on Python's path or in CWD; correct the name or PYTHONPATH",
        ),
        ("a.b", "", "there is no Python module 'a.b' on Python's path or in CWD; correct the name or PYTHONPATH"),
        ("a.py", "", "'a.py' is not the name of a Python module; expected a name as in `import mylayers`"),
        ("", "", 'python_param has no module; set for example python_param { module: "mylayers" layer: "MyLayer" }'),
        ("a", "print 1", "Python module 'a' cannot be imported: SyntaxError: Missing parentheses in call to 'print'."),
        (
            "a",
            "import nothinghere",
            "Python module 'a' cannot be imported: ModuleNotFoundError: No module named 'nothinghere' (a.py:1)",
        ),
        ("a", "x = 1\n1 / 0", "Python module 'a' cannot be imported: ZeroDivisionError: division by zero (a.py:2)"),
        ("a", "raise SystemExit(3)", "Python module 'a' cannot be imported: SystemExit: 3 (a.py:1)"),
    ],
)
def test_wrong_modules(user_module: UserModule, tmp_path: Path, module: str, source: str | None, text: str) -> None:
    if source is not None:
        user_module("a", source)
    with pytest.raises(ForceregError) as info:
        python_net(python("X", (2,)).replace("mylayers", module))
    found = str(info.value)
    assert found.startswith(f"<text>:2: layer 'l': {text.replace('CWD', str(tmp_path))}") and "\n" not in found
