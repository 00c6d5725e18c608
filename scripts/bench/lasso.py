"""What group lasso costs: steps of ResNet-20 with rows and columns of every convolution as groups, and without.

    python scripts/bench/lasso.py [--batch 128] [--rounds 15] [--device cpu] [--json FIGURES.json]

Both train the shipped net by SGD with momentum and weight decay on random images, a step each in turn; the one with
lasso also makes small weights zero, as its solver asks for. Ratios are of medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from contest import in_turns
from table import Figure, rows, write_figures

from forcereg.schema import NetParameter, SolverParameter
from forcereg.schema.text import read_net
from forcereg.solver.loop import Solver
from forcereg.system.shipped import configs_dir

GOAL = 1.05
"""The most that a step with lasso may take of one without."""
NET = "examples/cifar10/cifar10_resnet20_train_test_force.prototxt"


def stepper(lasso: bool, batch: int, device: str) -> Callable[[], None]:
    """A call that trains one step, and waits for it."""
    net = NetParameter(name="resnet20")
    shapes = {"shape": [{"dim": [batch, 3, 32, 32]}, {"dim": [batch]}]}
    net.layer.add(name="data", type="Input", top=["data", "label"], input_param=shapes)
    net.layer.extend(layer for layer in read_net(configs_dir() / NET).message.layer if layer.type != "Data")
    for layer in net.layer if lasso else ():
        if layer.type == "Convolution":
            weights = layer.param[0] if layer.param else layer.param.add()
            weights.breadth_decay_mult = weights.kernel_shape_decay_mult = 1
    mode = SolverParameter.SolverMode.Value("GPU" if device.startswith("cuda") else "CPU")
    param = SolverParameter(train_net_param=net, base_lr=0.1, lr_policy="fixed", momentum=0.9, weight_decay=1e-4)
    param.breadth_decay = param.kernel_shape_decay = 1e-3
    param.random_seed, param.solver_mode = 1, mode
    solver = Solver(param, device=device, observers=[lambda event: None])
    images, labels = torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device).float()

    def step() -> None:
        solver.step(1, {"data": images, "label": labels})
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    args = parser.parse_args()
    calls = [stepper(lasso, args.batch, args.device) for lasso in (False, True)]
    for _ in range(4):  # before anything is timed: memory, kernels, graphs
        for call in calls:
            call()
    plain, lasso = in_turns(calls, args.rounds)
    figures = [
        Figure(f"ResNet-20, batch {args.batch}", "step with row and column lasso / without", lasso / plain, GOAL)
    ]
    machine = f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print("\n".join([machine, "", *rows(figures)]))
    if args.json:
        write_figures(args.json, figures, {"seconds": [plain, lasso]}, machine)


if __name__ == "__main__":
    main()
