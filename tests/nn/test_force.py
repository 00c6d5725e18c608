"""Force beside the optimizers of torch.optim: what it adds, and that all else is as if it weren't there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import forcereg
from forcereg.nn import Force
from forcereg.solver.force import force_gradient
from tests.nursery import Nursery

DECAY = 0.01


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def net() -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 4))


X, Y = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])


def backward(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Tensor:
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def by_hand(model: nn.Module, kind: str = "Degradation", decay: float = DECAY) -> None:
    """What the force adds, by the solver's function of a weight."""
    for one in model.modules():
        if isinstance(one, nn.Conv2d):
            one.weight.grad += decay * force_gradient(one.weight, kind, groups=one.groups)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "Constant") for name in OPTIMIZERS), *(("sgd", kind) for kind in ("Degradation", "Linear", "Gravity"))],
)
def test_it_is_the_optimizer_on_gradients_with_the_force(name: str, kind: str) -> None:
    model = net()
    other = copy.deepcopy(model)
    wrapped = Force(OPTIMIZERS[name](model.parameters()), model, DECAY, kind)
    plain = OPTIMIZERS[name](other.parameters())
    for _ in range(3):
        wrapped.zero_grad()
        backward(model)
        wrapped.step()
        plain.zero_grad()
        backward(other)
        by_hand(other, kind)
        plain.step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-6)


LAYERS = [
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(4, 6, 3, groups=2),
    nn.Conv3d(2, 5, 2),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.ConvTranspose3d(2, 5, 2),
    nn.Linear(7, 5),
    nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    nn.Conv2d(4, 6, 3).double(),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_filters_of_every_kind(layer: Any) -> None:
    """Those of transposed convolutions lie on axis 1 of each group's block."""
    layer = copy.deepcopy(layer)
    layer.weight.grad = torch.zeros_like(layer.weight)
    Force(torch.optim.SGD(layer.parameters(), lr=0.1), layer, 2.0, "Constant", layers=type(layer)).add()
    weight, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    turned = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    blocks = [block.transpose(0, 1) if turned else block for block in weight.chunk(groups)]
    each = [2.0 * force_gradient(block.contiguous(), "Constant") for block in blocks]
    expected = torch.cat([one.transpose(0, 1) if turned else one for one in each])
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-5, atol=1e-6)


def added(model: nn.Module, **options: Any) -> set[str]:
    """The parameters whose gradients of 0 change."""
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    Force(torch.optim.SGD(model.parameters(), lr=0.1), model, DECAY, **options).add()
    return {name for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        pytest.param(None, {"0.weight", "3.weight"}, id="convolutions"),
        pytest.param("0", {"0.weight"}, id="name"),
        pytest.param(["[03]"], {"0.weight", "3.weight"}, id="pattern"),
        pytest.param(nn.Linear, {"5.weight"}, id="class"),
        pytest.param(["0", nn.Linear], {"0.weight", "5.weight"}, id="both"),
        pytest.param(lambda name, one: one.weight.shape[0] < 7, {"3.weight", "5.weight"}, id="function"),
    ],
)
def test_which_layers(layers: Any, found: set[str]) -> None:
    assert added(net(), layers=layers) == found


def test_chains_feel_none_unless_named() -> None:
    model = forcereg.nn.decompose(net(), X, rule=forcereg.RankConfig({"0": 4})).model
    assert added(model) == {"3.weight"}
    assert added(model, layers=["0.lowrank"]) == {"0.lowrank.weight"}


def test_without_a_gradient_there_is_no_force() -> None:
    model = net()
    optimizer = Force(torch.optim.SGD(model.parameters(), lr=0.1), model, DECAY)
    model[0].weight.requires_grad_(False)
    for _ in range(2):  # the second time with what the first one left
        optimizer.zero_grad()
        backward(model)
        before = model[0].weight.clone(), model[3].weight.clone()
        optimizer.step()
        assert model[0].weight.grad is None and torch.equal(model[0].weight, before[0])
        assert not torch.equal(model[3].weight, before[1])


def test_weights_that_the_optimizer_lacks_feel_none() -> None:
    model = net()
    backward(model)
    before = model[0].weight.grad.clone(), model[3].weight.grad.clone()
    optimizer = Force(torch.optim.SGD(model[3].parameters(), lr=0.1), model, DECAY)
    optimizer.add()
    assert torch.equal(model[0].weight.grad, before[0]) and not torch.equal(model[3].weight.grad, before[1])
    optimizer.add_param_group({"params": list(model[0].parameters())})
    optimizer.add()
    assert not torch.equal(model[0].weight.grad, before[0])


def test_a_shared_weight_feels_it_once() -> None:
    model = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)])
    model[1].weight = model[0].weight
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    Force(torch.optim.SGD(model.parameters(), lr=0.1), model, DECAY).add()
    torch.testing.assert_close(model[0].weight.grad, DECAY * force_gradient(model[0].weight))


def test_accumulated_gradients_get_it_once() -> None:
    model = net().eval()
    other = copy.deepcopy(model)
    wrapped = Force(torch.optim.SGD(model.parameters(), lr=0.1), model, DECAY)
    for half in (slice(0, 3), slice(3, 6)):
        (nn.functional.cross_entropy(model(X[half]), Y[half]) / 2).backward()
    wrapped.step()
    backward(other)
    by_hand(other)
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-6)


def test_closures() -> None:
    """LBFGS calls its closure several times a step, each time with a fresh gradient."""
    calls = []

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, behind: Callable[[], None]) -> Any:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = backward(model)
            calls.append(1)
            behind()
            return loss

        return optimizer.step(closure)

    model = net().eval()
    other = copy.deepcopy(model)
    wrapped = Force(torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4), model, DECAY)
    loss = run(model, wrapped, lambda: None)
    assert len(calls) > 1
    plain = torch.optim.LBFGS(other.parameters(), lr=0.1, max_iter=4)
    assert run(other, plain, lambda: by_hand(other)) == loss
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_under_a_grad_scaler(fused: bool, unscaled: bool) -> None:
    """Gradients are unscaled before the force comes, also where the optimizer could do that itself."""
    model = net()
    other = copy.deepcopy(model)
    wrapped = Force(torch.optim.Adam(model.parameters(), lr=0.01, fused=fused), model, DECAY)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(nn.functional.cross_entropy(model(X), Y)).backward()
    if unscaled:
        scaler.unscale_(wrapped)
    scaler.step(wrapped)
    scaler.update()
    backward(other)
    by_hand(other)
    torch.optim.Adam(other.parameters(), lr=0.01).step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-4, atol=1e-5)


def test_a_step_that_the_scaler_skips_is_none() -> None:
    model = net()
    wrapped = Force(torch.optim.SGD(model.parameters(), lr=0.1), model, DECAY)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    scaler.scale(model(X * float("inf")).sum()).backward()
    scaler.step(wrapped)
    assert torch.equal(weights(model), before) and wrapped.state_dict()["forcereg"] == {"steps": 0}


def test_every_second_step_it_is_twice_as_strong() -> None:
    model = net()
    other = copy.deepcopy(model)
    wrapped = Force(torch.optim.SGD(model.parameters(), lr=0.1), model, DECAY, every=2)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    for step in range(4):
        for optimizer, one in ((wrapped, model), (plain, other)):
            optimizer.zero_grad()
            backward(one)
            if optimizer is plain and step % 2 == 0:
                by_hand(other, decay=2 * DECAY)
            optimizer.step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
def test_stopped_and_resumed_is_the_same(copied: Any) -> None:
    """By state dicts, and as a copy with its model; in the middle of `every`."""

    def train(model: nn.Module, optimizer: Force, steps: int) -> Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
        return weights(model)

    model = net()
    optimizer = Force(torch.optim.Adam(model.parameters(), lr=0.01), model, DECAY, every=3)
    train(model, optimizer, 4)
    second = net()
    resumed = Force(torch.optim.Adam(second.parameters(), lr=0.01), second, DECAY, every=3)
    second.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    third = copied((model, optimizer))
    whole = train(model, optimizer, 4)
    assert torch.equal(train(second, resumed, 4), whole) and torch.equal(train(*third, 4), whole)


def test_the_wrapped_one_takes_the_state() -> None:
    model = net()
    optimizer = Force(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)
    backward(model)
    optimizer.step()
    plain = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["lr"] == 0.1 and len(plain.state) == len(list(model.parameters()))
    optimizer.load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda one: torch.optim.lr_scheduler.StepLR(one, 1, 0.5),
        lambda one: torch.optim.lr_scheduler.OneCycleLR(one, 0.1, total_steps=10),
        lambda one: torch.optim.lr_scheduler.ReduceLROnPlateau(one),
        lambda one: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(one, 5),
    ],
    ids=["step", "one-cycle", "plateau", "cosine"],
)
def test_schedulers_take_it(scheduler: Any) -> None:
    rates = []
    for wrap in (True, False):
        model = net()
        plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = Force(plain, model) if wrap else plain
        schedule = scheduler(optimizer)
        for _ in range(3):
            backward(model)
            optimizer.step()
            schedule.step(*[1.0] * isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau))
        rates.append([group["lr"] for group in plain.param_groups])
    assert rates[0] == rates[1]


def test_hooks_run() -> None:
    model, seen = net(), []
    optimizer = Force(torch.optim.SGD(model.parameters(), lr=0.1), model)
    optimizer.register_step_pre_hook(lambda *given: seen.append("before"))
    optimizer.register_step_post_hook(lambda *given: seen.append("behind"))
    optimizer.register_state_dict_post_hook(lambda one, state: {**state, "mine": 1})
    backward(model)
    optimizer.step()
    assert seen == ["before", "behind"] and optimizer.state_dict()["mine"] == 1


def test_compiled_models() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    other = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    optimizer = Force(torch.optim.SGD(compiled.parameters(), lr=0.1), compiled, DECAY, layers="0")
    backward(compiled)
    optimizer.step()
    backward(other)
    by_hand(other)
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-5, atol=1e-6)


PARALLEL = """
import os, sys, torch
from torch import distributed, nn
from forcereg.nn import Force
rank = 1 if (child := os.fork()) == 0 else 0
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=rank, world_size=2)
torch.manual_seed(0)
x, y = torch.randn(8, 3, 6, 6), torch.arange(8) % 4
def train(wrap, mine):
    torch.manual_seed(1)
    own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    model = wrap(own)
    optimizer = Force(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, 0.01, "Constant", layers="0")
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        optimizer.step()
    return torch.cat([one.detach().flatten() for one in own.parameters()])
both = train(nn.parallel.DistributedDataParallel, slice(rank, None, 2))
alone = train(lambda model: model, slice(None))
torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-6)
others = [torch.empty_like(both) for _ in range(2)]
distributed.all_gather(others, both)
assert torch.equal(*others)
distributed.destroy_process_group()
if rank:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_processes_train_as_one(nursery: Nursery, tmp_path: Any) -> None:
    done = nursery.run("-c", PARALLEL, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_after_rank_clipping_it_goes_on() -> None:
    """New weights of other shapes, in the model and in the optimizer."""
    model = forcereg.nn.decompose(net(), X, rule=forcereg.RankConfig({"0": 6})).model
    optimizer = Force(torch.optim.SGD(model.parameters(), lr=0.1), model, DECAY, layers=["0.lowrank", "3"])
    for _ in range(2):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        forcereg.nn.rank_clipping(model, energy=0.5).tell(optimizer)
    assert model[0].lowrank.weight.shape[0] < 6
    before = model[0].lowrank.weight.clone()
    backward(model)
    optimizer.step()
    assert not torch.equal(model[0].lowrank.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"force_type": "Gravty"}, 'did you mean "Gravity"', id="type"),
        pytest.param({"every": 0}, "every is 0; expected 1 or more", id="every"),
        pytest.param({"force_decay": float("nan")}, "force_decay is nan; expected a finite number", id="decay"),
        pytest.param({"layers": "conv9"}, "no convolution or Linear 'conv9'; it has 0, 3, 5", id="name"),
        pytest.param({"layers": nn.Conv1d}, "layers has Conv1d, of which the model has", id="class"),
        pytest.param({"layers": lambda name, one: False}, "takes none of 0, 3, 5", id="function"),
        pytest.param({"layers": 3}, "layers is 3; expected names", id="kind"),
        pytest.param({"layers": []}, "layers is empty", id="empty"),
    ],
)
def test_slips(options: dict[str, Any], message: str) -> None:
    model = net()
    with pytest.raises(forcereg.ForceregError, match=message.replace("(", r"\(")):
        Force(torch.optim.SGD(model.parameters(), lr=0.1), model, **options)


def test_slips_of_what_it_wraps() -> None:
    model = net()
    with pytest.raises(forcereg.UsageError, match=r"optimizer is .*; expected an optimizer of torch.optim"):
        Force(model.parameters(), model)  # type: ignore[arg-type]
    with pytest.raises(forcereg.UsageError, match=r"has no weight of the layers that should feel the force \(0, 3\)"):
        Force(torch.optim.SGD(model[5].parameters(), lr=0.1), model)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(forcereg.ForceregError, match="layer '0': its weight is computed from others"):
        Force(torch.optim.SGD(model.parameters(), lr=0.1), model)
    model = net()
    model[0].weight.grad = torch.zeros_like(model[0].weight).to_sparse()
    with pytest.raises(forcereg.ForceregError, match="layer '0': its gradient is sparse"):
        Force(torch.optim.SGD(model.parameters(), lr=0.1), model)
