"""Solvers with impossible or extreme settings, and nets that are right but larger than memory."""

from __future__ import annotations

from typing import Any

from tests.broken.case import NET, SOLVER, Case, Content, input_layer

BOTH = ("train", "check-solver")
TRAIN = ("train",)
LONG, LARGEST = "x" * 5000, 2147483647


def _solver(
    id: str, settings: str, expected: str, commands: tuple[str, ...] = BOTH, net: Content = NET, **more: Any
) -> Case:
    """SOLVER with these settings, one in a line, instead of its own."""
    given = {line.split(":")[0] for line in settings.split("\n")}
    kept = [line for line in SOLVER.splitlines() if line.split(":")[0] not in given]
    text = "\n".join([*kept, settings])
    return Case(f"solver-{id}", net, expected, commands, solver=text, **more)


def _text(id: str, text: Content, expected: str) -> Case:
    return Case(f"solver-{id}", NET, expected, BOTH, solver=text)


TEXTS = [
    Case("solver-empty", NET, "solver.prototxt: lr_policy is missing; set one", TRAIN, solver=""),
    Case(
        "solver-binary",
        NET,
        "solver.prototxt: byte 12 is 0x00; a solver file is plain text",
        TRAIN,
        solver="max_iter: 1\n\0",
    ),
    Case(
        "solver-10MB-of-braces", NET, "solver.prototxt:1:65: blocks are nested", TRAIN, solver=lambda: b"{" * 10_000_000
    ),
    _text("unknown-field", SOLVER + "max_iters: 1", "solver.prototxt:7:1: 'max_iters' is no field of SolverParameter"),
    _text("over-int32", "max_iter: 2147483648", "solver.prototxt:1:11: found '2147483648', expected an integer"),
    _text("over-int64", SOLVER + "random_seed: 9223372036854775808", "found '9223372036854775808', expected"),
    _text("unknown-mode", SOLVER.replace("CPU", "TPU"), "solver.prototxt:5:14: 'TPU' is no value of SolverMode"),
    _text(
        "is-a-net", f"base_lr: 1\n{NET}", "solver.prototxt:2:1: 'layer' is no field of SolverParameter; is this a net"
    ),
    _text("set-twice", f"{SOLVER}base_lr: 1", "'base_lr' is set twice in one SolverParameter; remove one"),
    _text(
        "inline-net-empty",
        SOLVER.replace("net:", "net_param { name:").replace('txt"', 'txt" }'),
        "net_param: the net has no",
    ),
]

SETTINGS = [
    _solver("net-without-name", 'net: ""', "cannot be read: it is a folder"),
    _solver("net-missing", 'net: "no.prototxt"', "net 'no.prototxt' does not exist under"),
    _solver("net-name-too-long", f'net: "{LONG}"', "net 'xxxxx"),
    _solver("net-with-NUL", 'net: "a\\000b"', "solver.prototxt: net holds a NUL character"),
    _solver("net-is-a-folder", 'net: "."', "cannot be read: it is a folder"),
    _solver(
        "two-nets", 'train_net: "net.prototxt"', "expected exactly one of net, net_param, train_net, train_net_param"
    ),
    _solver("unknown-type", 'type: "SGDD"', "unknown solver type 'SGDD'; did you mean \"SGD\"?"),
    _solver("unknown-policy", 'lr_policy: "stop"', "unknown lr_policy 'stop'; did you mean \"step\"?"),
    _solver(
        "stepsize-negative", 'lr_policy: "step"\nstepsize: -1', 'stepsize is -1; lr_policy "step" needs stepsize > 0'
    ),
    _solver("gamma-negative", 'lr_policy: "exp"\ngamma: -1', "gamma is -1; expected >= 0"),
    _solver("step-0", 'lr_policy: "step"\nstepsize: 0', 'stepsize is 0; lr_policy "step" needs stepsize > 0'),
    _solver("poly-without-end", 'lr_policy: "poly"\nmax_iter: 0', 'max_iter is 0; lr_policy "poly" falls to 0'),
    _solver("cosine-without-end", 'lr_policy: "cosine"\nmax_iter: 0', 'max_iter is 0; lr_policy "cosine" falls to'),
    _solver(
        "cosine-upwards",
        'lr_policy: "cosine"\neta_min: 2',
        "eta_min is 2; expected a rate from 0 to base_lr (it is 0.1)",
    ),
    _solver("onecycle-without-end", 'lr_policy: "onecycle"\nmax_iter: 0', 'max_iter is 0; lr_policy "onecycle" rises'),
    _solver(
        "onecycle-warmed-up",
        'lr_policy: "onecycle"\nwarmup_iter: 5',
        'warmup_iter is 5, but lr_policy "onecycle" rises by',
    ),
    _solver(
        "onecycle-percent", 'lr_policy: "onecycle"\npct_start: 30', "pct_start is 30; expected a share of max_iter"
    ),
    _solver(
        "onecycle-divisor-0", 'lr_policy: "onecycle"\ndiv_factor: 0', "div_factor is 0; expected a divisor of 1 or"
    ),
    _solver("warmup-negative", "warmup_iter: -1", "warmup_iter is -1; expected a number of iterations, 0 for none"),
    _solver(
        "warmup-from-above", "warmup_iter: 5\nwarmup_start_lr: 9", "warmup_start_lr is 9; expected a rate from 0 to"
    ),
    _solver("average-loss-0", "average_loss: 0", "average_loss is 0; expected >= 1"),
    _solver("average-loss-negative", "average_loss: -2147483648", "average_loss is -2147483648; expected >= 1"),
    _solver("iter-size-0", "iter_size: 0", "iter_size is 0; expected >= 1"),
    _solver("max-iter-negative", "max_iter: -1", "max_iter is -1; expected >= 0"),
    _solver("snapshot-negative", "snapshot: -5", "snapshot is -5; expected >= 0"),
    _solver("unknown-regularization", 'weight_decay: 1\nregularization_type: "L3"', "L3"),
    _solver(
        "winograd-regularization",
        'weight_decay: 1\nregularization_type: "L1_Winograd"',
        "isn't built: forcereg convolves",
    ),
    _solver("prune-threshold-negative", "prune_threshold: -1", "prune_threshold is -1; expected >= 0"),
    _solver("unknown-force", 'force_type: "Degradatio"', "unknown force_type 'Degradatio'; did you mean"),
    _solver("unknown-direction", 'force_direction: "up"', "unknown force_direction 'up'"),
    _solver("force-ramp-negative", "force_ramp: -1", "force_ramp is -1; expected a number of iterations, 0 for none"),
    _solver(
        "force-release-endless", "force_release: 9", "force_release is 9, but the force never ends; set force_iter"
    ),
    _solver(
        "force-release-long",
        "force_ramp: 60\nforce_release: 50\nforce_iter: 100",
        "force_ramp 60 and force_release 50 are more than force_iter 100",
    ),
    _solver(
        "unknown-metric", 'force_metric: "response"', "unknown force_metric 'response'; did you mean \"responses\""
    ),
    _solver("metric-interval-0", "force_metric_interval: 0", "force_metric_interval is 0; expected >= 1"),
    _solver("force-until-percent", "force_until: 30", "force_until is 30; expected a share of full ranks, above 0"),
    _solver("force-until-0", "force_until: 0", "force_until is 0; expected a share of full ranks, above 0"),
    _solver(
        "force-until-untested",
        "force_decay: 1\nforce_until: 0.3",
        "force_until is 0.3, but ranks are looked at in tests",
    ),
    _solver("no-test-interval", "test_iter: 1", "test nets need test_interval > 0; found 0"),
    _solver("test-interval-negative", "test_iter: 1\ntest_interval: -3", "test nets need test_interval > 0; found -3"),
    _solver("test-iter-negative", "test_iter: -7\ntest_interval: 1", "test_iter is -7; expected >= 0"),
    _solver("test-net-missing", 'test_net: "no"\ntest_iter: 1\ntest_interval: 1', "test_net 'no' does not exist under"),
    _solver(
        "test-nets-uncounted", 'test_net: "net.prototxt"', "has 0 test_iter entries for 1 test nets; give one each"
    ),
    _solver(
        "test-states-uncounted",
        "test_state {}\ntest_state {}\ntest_iter: 1\ntest_interval: 1",
        "has 2 test_state entries",
    ),
    _solver("device-negative", "solver_mode: GPU\ndevice_id: -1", "device_id is -1"),
    _solver(
        "prefix-missing", 'snapshot_after_train: true\nsnapshot_prefix: "no/such/net"', "cannot write snapshots to"
    ),
    _solver(
        "prefix-with-NUL",
        'snapshot_after_train: true\nsnapshot_prefix: "a\\000b"',
        "solver.prototxt: snapshot_prefix holds a NUL character",
    ),
    _solver("prefix-too-long", f'snapshot_after_train: true\nsnapshot_prefix: "{LONG}"', "File name too long"),
    _solver("weights-missing", 'weights: "no.caffemodel.h5"', "no.caffemodel.h5"),
    _solver("weights-with-NUL", 'weights: "a\\000b"', "solver.prototxt: weights holds a NUL character"),
    _solver("weights-are-a-net", 'weights: "net.prototxt"', "net.prototxt"),
    _solver(
        "rate-without-end",
        'lr_policy: "exp"\ngamma: 1e38\nmax_iter: 30',
        "at iteration 2 the learning rate 1e+75",
        TRAIN,
    ),
    _solver(
        "rate-times-mult",
        "base_lr: 3e38",
        "is larger than a float32",
        TRAIN,
        NET.replace("inner", "param { lr_mult: 9 } inner"),
    ),
    _solver(
        "decay-times-mult",
        "weight_decay: 3e38",
        "is larger than a float32",
        TRAIN,
        NET.replace("inner", "param { decay_mult: 9 } inner"),
    ),
]


def _wide(batch: int, inputs: int, outputs: int, param: str = "", more: str = "") -> str:
    """A net of one InnerProduct of any size."""
    shape = f"shape {{ dim: {batch} dim: {inputs} }}"
    product = f"inner_product_param {{ num_output: {outputs} {param} }} {more}"
    return (
        f'layer {{ name: "d" type: "DummyData" top: "x" dummy_data_param {{ {shape} }} }}\n'
        f'layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" {product} }}\n'
        'layer { name: "l" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 }\n'
    )


def _large(id: str, net: str, expected: str, settings: str = 'net: "net.prototxt"', **more: Any) -> Case:
    """A net that is right, but not for this memory."""
    return _solver(f"large-{id}", settings, expected, TRAIN, net, **more)


TILED = 'layer {{ name: "t" type: "Tile" bottom: "x" top: "t" tile_param {{ tiles: {} axis: 0 }} }}\n'
FORCED = "param { force_mult: 1 }"
LARGE = [
    _large("weights", _wide(1, 65535, 32767), "net.prototxt:2: layer 'ip': blob 'weight' [32767, 65535] needs 8.0 GiB"),
    _large(
        "weights-filled",
        _wide(1, 15000, 15000, 'weight_filler { type: "xavier" }'),
        "layer 'ip': not enough memory to fill",
    ),
    _large("history", _wide(1, 12000, 12000), "not enough memory (tried to allocate", growth=1800),
    _large(
        "top",
        _wide(1, 1, 1) + TILED.format(LARGEST),
        "net.prototxt:4: layer 't': not enough memory to run it on bottoms [1, 1]",
    ),
    _large("top-of-product", _wide(40000, 1, 40000), "layer 'ip': not enough memory to run it on bottoms [40000, 1]"),
    _large("data", _wide(1, LARGEST, 1), "net.prototxt:2: layer 'ip': blob 'weight' [1, 2147483647] needs 8.0 GiB"),
    _large(
        "dummy", _wide(LARGEST, 1, 1), "net.prototxt:1: layer 'd': its tops need 8.0 GiB, more memory than there is"
    ),
    _large("force", _wide(1, 1, 100_000, more=FORCED), "not enough memory", 'force_decay: 0.1 force_type: "Constant"'),
]

STEPS = "\n".join(f"stepvalue: {LARGEST}" for _ in range(100_000))
FINE = [
    _solver(
        "average-loss-of-two-billion",
        "average_loss: 2000000000\nmax_iter: 5\ndisplay: 1",
        "Optimization Done",
        TRAIN,
        code=0,
    ),
    _solver(
        "steps-by-the-thousand", f'lr_policy: "multistep"\ngamma: 0.1\n{STEPS}', "Optimization Done", TRAIN, code=0
    ),
    _solver(
        "rate-of-any-size",
        f'lr_policy: "exp"\ngamma: 1e38\nmax_iter: {LARGEST}',
        "inf at last",
        ("check-solver",),
        code=0,
    ),
    _solver(
        "power-of-any-size", 'lr_policy: "poly"\npower: -1e38\nmax_iter: 3', "inf at last", ("check-solver",), code=0
    ),
    _solver("test-iter-0", "test_iter: 0\ntest_interval: 1", "Optimization Done", TRAIN, code=0),
    _solver(
        "huge-intervals",
        f'display: {LARGEST}\nsnapshot: {LARGEST}\nsnapshot_prefix: "n"',
        "Optimization Done",
        TRAIN,
        code=0,
    ),
    Case("legal-but-large", input_layer("x", (LARGEST,)), "8.00 GiB", ("summary",), code=0),
    Case("large-weights-summary", _wide(1, 65535, 32767), "8.00 GiB", ("summary",), code=0),
]

CASES = [*TEXTS, *SETTINGS, *LARGE, *FINE]
