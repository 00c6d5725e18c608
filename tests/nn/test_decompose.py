"""Whole models: exact at the full rank, budgets met, and what has to stay as it is left alone with a reason."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import forcereg
from forcereg.nn import decompose, macs, ranks
from tests.nn.models import FULL, SMALL, Recurrent, built, difference

METHODS = ("pca", "svd", "vh", "tucker2", "kmeans", "cp")


def exact(model: nn.Module, x: Tensor, method: str, **more: Any) -> forcereg.nn.Decomposition:
    """The model at the full rank, whose output has to be the same."""
    made = decompose(model, x, rule=forcereg.MaxError(0), method=method, even_if_dearer=True, **more)
    with torch.no_grad():
        assert difference(made.model(x), model(x)) < 1e-5, method
    return made


ABLE = {
    "densenet": METHODS,
    "vit": ("pca", "svd"),
    "lstm": ("pca", "svd", "tucker2", "kmeans"),
    "mobilenet_v3_small": ("pca", "tucker2"),
}
"""The methods for each: of a Linear's weight and of a kernel of one axis there are no others, or they take too long."""


@pytest.mark.parametrize("name", SMALL)
def test_other_people_s_models(name: str) -> None:
    model, x = built(*SMALL[name])
    before = copy.deepcopy(model.state_dict())
    made = [exact(model, x, method, fc=method in ("pca", "svd", "kmeans")) for method in ABLE[name]]
    folded = exact(model, x, "pca", fold_bn=True, fc=True)
    norms = sum(isinstance(one, nn.BatchNorm2d) for one in folded.model.modules())
    assert norms == sum(isinstance(one, nn.BatchNorm2d) for one in model.modules()) - len(folded.report["folded"])
    whole = made[0].report["net"]
    assert whole["macs_before"] == macs(model, x) and whole["macs_after"] == macs(made[0].model, x)
    half = decompose(model, x, rule=forcereg.MaxMacs(0.7), fc=True)
    assert macs(half.model, x) <= 0.7 * macs(model, x)
    assert all(torch.equal(one, before[key]) for key, one in model.state_dict().items()), "the model stays what it was"


def test_resnet18() -> None:
    model, x = built(*FULL["resnet18"])
    made = exact(model, x, "pca", layers=["conv1", "layer[12].*"], fold_bn=True)
    assert len(made.report["layers"]) == 10 and len(made.report["folded"]) == 20
    assert not any(isinstance(one, nn.BatchNorm2d) for one in made.model.modules())


def test_vgg11_bn() -> None:
    """Of its convolutions the small ones; every BatchNorm is folded, before pools too."""
    model, x = built(*FULL["vgg11_bn"])
    made = exact(model, x, "svd", layers=["0.0", "0.4", "0.8"], fold_bn=True)
    assert [one["name"] for one in made.report["layers"]] == ["0.0", "0.4", "0.8"]
    assert len(made.report["folded"]) == 8 and not any(isinstance(one, nn.BatchNorm2d) for one in made.model.modules())


@pytest.mark.parametrize("name", FULL)
def test_whole_models(name: str, long_form: bool) -> None:
    if not long_form:
        pytest.skip("with --long")
    model, x = built(*FULL[name])
    # clusters of hundreds of filters and sums of thousands of products take hours: those are for the small models
    for method in METHODS[:4]:
        if method == "vh" and name == "lstm":
            continue
        exact(model, x, method, fc=method in ("pca", "svd"))
    exact(model, x, "pca", fold_bn=True)


def test_what_else_is_in_a_model_is_untouched() -> None:
    model, x = built(*FULL["lstm"])
    made = exact(model, x, "pca", fc=True).model
    before = dict(model.named_parameters())
    assert all(torch.equal(one, before[name]) for name, one in made.named_parameters() if name.startswith("lstm."))


def test_products_are_counted_by_hand() -> None:
    model, x = built(Recurrent, (2, 5, 9))
    features = 2 * (9 * 16 * 5 * 3 + 4 * 12 * 16 * 3)
    assert macs(model, x) == features + 2 * 4 * 40 * (12 + 10) + 2 * 10 * 4


@pytest.mark.parametrize(
    ("rule", "key", "most"),
    [
        pytest.param(forcereg.MaxMacs(0.5), "macs", 0.5, id="macs"),
        pytest.param(forcereg.MaxMacs(0.5, choose="minmax"), "macs", 0.5, id="minmax"),
        pytest.param(forcereg.MaxMacs(0.5, choose="remainder"), "macs", 0.5, id="remainder"),
        pytest.param(forcereg.MaxMacs(0.5, choose="responses"), "macs", 0.5, id="responses"),
        pytest.param(forcereg.MaxParams(0.4), "params", 0.4, id="params"),
    ],
)
def test_budgets(rule: Any, key: str, most: float) -> None:
    model, x = built(plain, (1, 3, 12, 12))
    data = [(torch.randn(4, 3, 12, 12), torch.zeros(4)) for _ in range(2)]
    net = decompose(model, x, rule=rule, data=data).report["net"]
    assert 0.9 * most * net[f"{key}_before"] <= net[f"{key}_after"] <= most * net[f"{key}_before"]


def plain() -> nn.Module:
    convs = [nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()]
    return nn.Sequential(*convs, nn.Conv2d(24, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def test_an_accuracy_to_keep() -> None:
    model, x = built(plain, (1, 3, 12, 12))
    seen: list[int] = []

    def score(one: nn.Module) -> Tensor:
        assert not one.training
        seen.append(macs(one, x))
        return torch.tensor(1.0 if seen[-1] > 0.6 * seen[0] else 0.5)

    made = decompose(model, x, rule=forcereg.MaxAccuracyDrop(0.1, score=score))
    assert 0.6 * seen[0] < macs(made.model, x) < 0.75 * seen[0] and len(seen) <= 10


def test_data_aware_ranks_answer_the_data() -> None:
    """Inputs that lie in few directions need few filters; rank 2 is then exact on them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False))
    inputs = torch.randn(64, 2) @ torch.randn(2, 8)
    options = {"layers": nn.Linear, "even_if_dearer": True, "data": [inputs], "data_aware": 1}
    made = decompose(model, inputs[:1], rule=forcereg.Ranks([2]), **options)
    blind = decompose(model, inputs[:1], rule=forcereg.Ranks([2]), layers=nn.Linear, even_if_dearer=True)
    assert difference(made.model(inputs), model(inputs)) < 1e-3 < 0.05 < difference(blind.model(inputs), model(inputs))


CONVS = {
    "plain": nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2),
    "groups": nn.Conv2d(4, 6, (3, 5), groups=2, padding="same", dilation=(2, 1)),
    "reflect": nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "1d": nn.Conv1d(3, 4, 3),
}


@pytest.mark.parametrize("name", CONVS)
def test_moments_are_those_of_the_inputs(name: str) -> None:
    """trace(W M W^T) is the mean square of the responses W x."""
    from forcereg.nn.moments import input_moments
    from forcereg.nn.prepare import Site

    conv: Any = CONVS[name]
    x = torch.randn(3, conv.in_channels, *[9] * len(conv.kernel_size), generator=torch.Generator().manual_seed(1))
    moments = input_moments(conv, {"conv": Site(conv, conv, None)}, [x], 1, x)["conv"]
    rows = conv.weight.detach().double().reshape(conv.groups, -1, moments.shape[-1])
    y = (conv(x) - conv.bias.reshape(-1, *[1] * len(conv.kernel_size))).double()
    torch.testing.assert_close((rows @ moments * rows).sum(), y.square().sum(1).mean().detach(), rtol=1e-5, atol=1e-6)


# -- what stays


class Odd(nn.Module):
    """Everything that can't be replaced, and one layer that can."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Conv2d(4, 8, 3, padding=1)
        self.hooked = nn.Conv2d(8, 8, 1)
        self.hooked.register_forward_hook(lambda *given: None)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.read = nn.Conv2d(8, 8, 1)
        self.tied, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.tied.weight
        self.idle = nn.Conv2d(8, 8, 1)
        self.own = Own(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(self.normed(self.hooked(self.good(x))))
        x = self.other(self.tied(self.read(x))) + self.read.weight.sum()
        found: Tensor = self.up(x, output_size=[2 * x.shape[2] + 2, 2 * x.shape[3] + 2])
        return found


class Own(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


REASONS = {
    "hooked": "it has hooks",
    "normed": "its weight is computed from others",
    "read": "its weight is also read by other code",
    "tied": "its weights are shared with 'other'",
    "other": "its weights are shared with 'tied'",
    "idle": "it never ran on the example",
    "own": "it is a Own, which computes otherwise than torch.nn's Conv2d",
    "up": "it is called with more than its input",
}


def test_what_stays_whole_and_why() -> None:
    model, x = Odd(), torch.randn(1, 4, 6, 6)
    made = exact(model, x, "pca")
    assert [one["name"] for one in made.report["layers"]] == ["good"]
    assert {one["name"] for one in made.report["skipped"]} == REASONS.keys()
    for one in made.report["skipped"]:
        assert one["reason"].startswith(REASONS[one["name"]]), one


def test_an_old_weight_norm_is_named() -> None:
    """It keeps torch from copying the model."""
    model = plain()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[3])  # type: ignore[index]
    with pytest.raises(forcereg.ForceregError, match="Sequential can't be copied: layer '3': its weight is computed"):
        decompose(model, torch.randn(1, 3, 12, 12), rule=forcereg.MaxMacs(0.5))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.again = self.first
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.again(self.first(x)))
        return found


def test_a_module_of_two_places_stays_one() -> None:
    model, x = Twice().eval(), torch.randn(1, 6, 5, 5)
    made = exact(model, x, "pca", fold_bn=True)
    assert made.model.first is made.model.again and made.report["folded"] == {}
    assert made.report["layers"][0]["macs_before"] == 2 * 25 * 6 * 54 == made.report["net"]["macs_before"]


class Readers(nn.Module):
    """One convolution for each way in which its BatchNorm may or may not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.added, self.given, self.inplace = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(4))
        self.turned = nn.ConvTranspose2d(3, 4, 2, groups=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(4)])
        self.last, self.free = nn.BatchNorm2d(4), nn.BatchNorm2d(3, track_running_stats=False)
        self.fc, self.flat = nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norms[0](self.alone(x))
        y = self.added(x)
        x = self.norms[1](y) + y
        given = self.given(x)
        y = self.inplace(self.norms[2](given))
        y.relu_()
        z = self.last(self.turned(self.norms[3](y)))
        return self.flat(self.fc(z.mean((2, 3)))), given


def test_which_batch_norms_are_folded() -> None:
    model, x = built(Readers, (2, 3, 4, 4))
    nn.init.uniform_(model.flat.running_var, 0.5, 2)  # type: ignore[union-attr, arg-type]
    made = decompose(model, x, rule=forcereg.MaxError(0), fold_bn=True, fc=True, even_if_dearer=True)
    assert made.report["folded"] == {"alone": "norms.0", "turned": "last", "fc": "flat"}
    for one, other in zip(made.model(x), model(x), strict=True):
        assert difference(one, other) < 1e-5
    assert isinstance(made.model.last, nn.Identity) and made.model.alone.linear.bias is not None  # type: ignore[union-attr]


# -- results live without forcereg


@pytest.fixture(scope="module")
def half() -> tuple[nn.Module, Tensor]:
    model, x = built(plain, (2, 3, 12, 12))
    return decompose(model, x, rule=forcereg.MaxMacs(0.5), fold_bn=True).model.eval(), x


def lives_without_us(model: nn.Module, x: Tensor) -> None:
    """Pickled, scripted, exported for any batch, and in ONNX Runtime it gives what it gave."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    more = torch.cat([x, 2 * x, -x])
    expected = {one: model(one).detach() for one in (x, more)}
    bytes_ = pickle.dumps(model)
    assert b"forcereg" not in bytes_
    file = io.BytesIO()
    with warnings.catch_warnings():  # torch's own: of newer ways (which need onnxscript), of an LSTM's flat weights
        warnings.simplefilter("ignore")
        script = torch.jit.script(model)
        program = torch.export.export(model, (more,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    for again in (pickle.loads(bytes_), copy.deepcopy(model), script, program):
        for one, y in expected.items():
            torch.testing.assert_close(again(one).detach(), y, rtol=1e-5, atol=1e-6)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for one, y in expected.items():
        assert difference(torch.from_numpy(session.run(None, {"x": one.numpy()})[0]), y) < 1e-5


def test_results_live_without_us(half: tuple[nn.Module, Tensor]) -> None:
    lives_without_us(*half)


@pytest.mark.parametrize("name", SMALL)
def test_other_people_s_models_live_without_us(name: str) -> None:
    model, x = built(*SMALL[name])
    lives_without_us(decompose(model, x, rule=forcereg.MaxMacs(0.7), fc=True, fold_bn=True).model.eval(), x)


@pytest.mark.parametrize("name", FULL)
def test_whole_models_live_without_us(name: str, long_form: bool) -> None:
    if not long_form:
        pytest.skip("with --long")
    model, x = built(*FULL[name])
    lives_without_us(decompose(model, x, rule=forcereg.MaxMacs(0.7), fc=True, fold_bn=True).model.eval(), x)


def test_results_train(half: tuple[nn.Module, Tensor]) -> None:
    model = copy.deepcopy(half[0]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(half[1]), torch.tensor([0, 1])))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_wrapped_models_are_unwrapped() -> None:
    model, x = built(plain, (1, 3, 12, 12))
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        made = decompose(wrapped, x, rule=forcereg.MaxMacs(0.5)).model
        assert type(made) is nn.Sequential and difference(made(x), model(x)) < 1


@pytest.mark.parametrize(
    ("example", "form"),
    [((torch.ones(1, 4, 5, 5), 2), "tuple"), ({"x": torch.ones(1, 4, 5, 5), "times": 2}, "mapping")],
)
def test_examples_of_several_arguments(example: Any, form: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3)

        def forward(self, x: Tensor, times: int) -> Tensor:
            found: Tensor = self.conv(x) * times
            return found

    model = Two()
    batch = {**example, "label": 1} if form == "mapping" else [*example, "label"]
    made = decompose(model, example, rule=forcereg.MaxError(0), even_if_dearer=True, data=[batch], data_aware=1)
    assert made.report["net"]["macs_before"] == macs(model, example) == 9 * 8 * 36


def test_measured_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes by learned values, which no load of the machine disturbs."""

    def interleaved(runs: Any, device: torch.device) -> list[list[float]]:
        assert all(isinstance(run(), Tensor) for run in runs)
        modules = [next(one for one in (run.func, *run.args) if isinstance(one, nn.Module)) for run in runs]
        return [[float(sum(one.numel() for one in module.parameters()))] * 3 for module in modules]

    monkeypatch.setattr("forcereg.nn.timing.interleaved", interleaved)
    model, x = built(plain, (1, 3, 12, 12))
    made = decompose(model, x, rule=forcereg.RankConfig({"3": 4}), latency="cpu")
    (trial,) = made.report["latency"]["layers"]
    assert (trial["name"], trial["asked"], trial["rank"], trial["ms_before"]) == ("3", 4, 4, 24 * 16 * 9 + 24)
    assert made.report["latency"]["net"]["speedup"] > 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_ranks_by_another_runtime(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which runs each layer and chain, and no whole model; a made-up clock."""
    pytest.importorskip(runtime)
    called: list[Any] = []

    def interleaved(runs: Any, device: torch.device) -> list[list[float]]:
        called.extend(run() for run in runs)
        return [[1.0 / (1 + at)] * 3 for at, _ in enumerate(runs)]

    monkeypatch.setattr("forcereg.nn.timing.interleaved", interleaved)
    model, x = built(plain, (2, 3, 12, 12))
    options = {"latency": "cpu", "runtime": runtime, "threads": 1, "fc": True}
    made = decompose(model, x, rule=forcereg.RankConfig({"3": 4, "8": 2}), method="svd", **options)
    shapes = [tuple(one[0].shape) for one in called]
    assert set(shapes) == {(2, 24, 8, 8), (2, 4)} and all(isinstance(one[0], np.ndarray) for one in called)
    found = made.report["latency"]
    assert (found["runtime"], found["threads"], found["net"]) == (runtime, 1, None) and runtime in found["device"]


NETS = {
    "plain": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=2), (2, 3, 9, 9)),
    "same": (nn.Conv2d(4, 6, (3, 5), groups=2, padding="same", dilation=(2, 1)), (1, 4, 7, 7)),
    "valid": (nn.Conv1d(3, 4, 3, padding="valid", bias=False), (2, 3, 8)),
    "an item": (nn.Conv2d(3, 4, 3), (3, 8, 8)),
    "3d": (nn.Conv3d(2, 3, 2, stride=2), (1, 2, 4, 4, 4)),
    "up": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 5, 5)),
    "linear": (nn.Linear(5, 3), (2, 4, 5)),
    "vector": (nn.Linear(5, 3), (5,)),
    "half": (nn.Conv2d(3, 4, 3).half(), (2, 3, 6, 6)),
    "chain": (nn.Sequential(nn.Conv2d(3, 2, (3, 1), stride=(2, 1), bias=False), nn.Conv2d(2, 4, (1, 3))), (1, 3, 9, 9)),
}


@pytest.mark.parametrize("name", NETS)
def test_what_another_runtime_is_given_is_the_layer(name: str) -> None:
    from forcereg.nn.elsewhere import as_net

    module, shape = NETS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(next(module.parameters()).dtype)
    net, fed = as_net(module, x, name)
    with torch.no_grad():
        for own, blob in zip(net.parameters(), module.parameters(), strict=True):
            own.copy_(blob)
        (found,) = net(x0=fed).values()
        expected = copy.deepcopy(module).float()(x.float())
    torch.testing.assert_close(found.reshape(expected.shape), expected)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
        (nn.Conv2d(3, 8, 2, padding="same"), "padding 'same', which is uneven here"),
        (nn.ConvTranspose2d(3, 8, 3, stride=2, output_padding=1), r"output_padding \(1, 1\)"),
    ],
)
def test_what_no_file_says_is_told_by_name(layer: nn.Module, what: str) -> None:
    pytest.importorskip("onnxruntime")
    options = {"rule": forcereg.Ranks([2]), "latency": "cpu", "runtime": "onnxruntime"}
    with pytest.raises(forcereg.ForceregError, match=f"^layer '0': no ONNX file is written of its {what}; leave it"):
        decompose(nn.Sequential(layer), torch.randn(1, 3, 8, 8), **options)


def test_ranks_at_errors() -> None:
    model, x = built(plain, (1, 3, 12, 12))
    found = ranks(model, x, error=[0, 0.3], fold_bn=True)
    assert [one.name for one in found.layers] == ["0", "3", "5"]
    assert all(one == full and 0 < other < full for (one, other), full in zip(found.ranks, (16, 24, 16), strict=True))
    assert found.report()["net"][0]["macs_before"] == macs(model, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"rule": 0.5}, "rule is 0.5; expected a rule for ranks", id="rule"),
        pytest.param({"method": "pcaa"}, 'unknown decomposition method .*did you mean "pca"', id="method"),
        pytest.param({"layers": "9"}, "the model has no convolution or Linear '9'; it has 0, 3, 5, 8", id="name"),
        pytest.param({"rule": forcereg.Ranks([3])}, "1 ranks given; the net has 3 layers", id="list"),
        pytest.param({"rule": forcereg.Ranks([3, 99, 3])}, "layer '3': cannot be decomposed: rank is 99", id="range"),
        pytest.param({"rule": forcereg.MaxAccuracyDrop(0.1)}, "scored by a function of it: .*score=", id="score"),
        pytest.param({"rule": forcereg.MaxMacs(0.5, choose="responses")}, "the layers' inputs: give data", id="data"),
        pytest.param({"data_aware": 2}, "data_aware needs data", id="no-data"),
        pytest.param({"data_aware": 2, "data": []}, "data gives no batch", id="empty-data"),
        pytest.param({"data_aware": 2, "data": [3]}, "a batch of the data is a int; expected a tensor", id="odd-data"),
        pytest.param({"method": "mixed"}, "takes each layer's method from a rule RankConfig", id="mixed"),
        pytest.param({"layers": "8", "method": "vh"}, "nothing to decompose .8: vh needs a kernel", id="nothing"),
        pytest.param({"rule": forcereg.MaxError(0)}, "even_if_dearer=True decomposes layers", id="dearer"),
        pytest.param({"example": torch.ones(1, 4, 5, 5)}, "Sequential doesn't run on the example: Runt", id="example"),
        pytest.param({"runtime": "openvino"}, "--runtime is how --latency cpu measures", id="unmeasured"),
        pytest.param({"latency": "cpu", "runtime": "tvm"}, "unknown runtime 'tvm'; expected onnx", id="runtime"),
        pytest.param({"model": 3}, "model is 3; expected a torch.nn.Module", id="model"),
    ],
)  # fmt: skip
def test_slips(options: dict[str, Any], message: str) -> None:
    model, x = built(plain, (1, 3, 12, 12))
    given = {"model": model, "example": x, "rule": forcereg.MaxMacs(0.5), **options}
    with pytest.raises(forcereg.ForceregError, match=message):
        decompose(given.pop("model"), given.pop("example"), **given)


@pytest.mark.parametrize("way", ["attribute", "kept"])
def test_a_model_that_goes_by_other_ways(way: str) -> None:
    """What the chains would break, or never see, is told and not returned."""

    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3)
            self.__dict__["kept"] = self.conv

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = (self.__dict__["kept"] if way == "kept" else self.conv)(x)
            return found * self.conv.out_channels if way == "attribute" else found

    message = {"attribute": "leave out by layers= whose attributes the model reads", "kept": "calls it by another way"}
    with pytest.raises(forcereg.ForceregError, match=message[way]):
        decompose(Sly(), torch.randn(1, 4, 5, 5), rule=forcereg.Ranks([3]))


def test_a_rule_for_each_layer() -> None:
    model, x = built(plain, (1, 3, 12, 12))
    rule = forcereg.RankConfig({"3": {"method": "vh", "rank": 6}, "8": {"method": "svd", "rank": 2}})
    made = decompose(model, x, rule=rule, method="mixed")
    names = {name: [part for part, _ in one.named_children()] for name, one in made.model.named_children()}
    assert (names["3"], names["8"], names["5"]) == (["v", "h"], ["lowrank", "linear"], [])


def test_a_dear_chain_is_remarked_on() -> None:
    model, x = built(plain, (1, 3, 12, 12))
    (remark, *_) = decompose(model, x, rule=forcereg.RankConfig({"3": 24})).report["remarks"]
    assert remark.startswith("3: its chain has 1.17x the MACs") and remark.endswith("let layers= leave out 3")


def test_progress_is_told() -> None:
    model, x = built(plain, (1, 3, 12, 12))
    events: list[Any] = []
    decompose(model, x, rule=forcereg.MaxMacs(0.5), observer=events.append)
    assert {one.kind for one in events} == {"progress"} and any("3: rank" in one.fields["text"] for one in events)


def test_a_seeded_choice_is_the_same_again() -> None:
    model, x = built(plain, (1, 3, 12, 12))
    state = torch.get_rng_state()
    made = [decompose(model, x, rule=forcereg.MaxMacs(0.5), method="kmeans").model for _ in range(2)]
    assert all(torch.equal(one, made[1].state_dict()[key]) for key, one in made[0].state_dict().items())
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
