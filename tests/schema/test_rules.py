"""What errors say about a net of a state: which net, which rule leaves a layer out of it, what admits the layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.net.load import shape_net
from forcereg.schema import TEST, TRAIN, LayerParameter, NetState
from forcereg.schema.rules import Title, left_out, net_state, rule_matches, way_in
from forcereg.schema.spec import build_spec
from forcereg.schema.text import parse_net
from tests.conftest import RunCli

DATA = (
    'layer { name: "d" type: "DummyData" top: "x" top: "t" dummy_data_param { shape { dim: 2 dim: 3 } '
    "shape { dim: 2 } } }\n"
)
LOSS = 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "y" bottom: "t" top: "l" }\n'
SOLVER = (
    'net: "n.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 test_iter: 1 test_interval: 1 snapshot_prefix: "s"\n'
)


def maker(rules: str, name: str = "a") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "x" top: "y" {rules} '
        "inner_product_param { num_output: 3 } }\n"
    )


HEAD = "<text>:3: layer 'l': unknown bottom blob 'y' in the TEST net"
STAGE_S = "give --stage s (stages=['s'] in Python)"


NEVER = "no net can have it: correct the rule of layer 'a'"


@pytest.mark.parametrize(
    ("rules", "state", "rule", "fix"),
    [
        ('include { stage: "s" }', "", 'include rule (stage "s")', STAGE_S),
        ('include { stage: "s" }', "r", 'include rule (stage "s")', "give --stage r,s (stages=['r', 's'] in Python)"),
        (
            'include { not_stage: "r" }',
            "r q",
            'include rule (not_stage "r")',
            "give --stage q (stages=['q'] in Python)",
        ),
        ("include { min_level: 2 }", "0", "include rule (min_level 2)", "give --level 2 (level=2 in Python)"),
        ("include { max_level: 2 }", "5", "include rule (max_level 2)", "give --level 2 (level=2 in Python)"),
        ('include { stage: "s" min_level: 1 }', "", "", "give --stage s --level 1 (stages=['s'], level=1 in Python)"),
        (
            "include { phase: TRAIN }",
            "",
            "include rule (phase TRAIN)",
            "make it in phase TEST too, or leave layer 'l' out of it by the same rule",
        ),
        ("include { min_level: 3 max_level: 1 }", "", "include rule (min_level 3, max_level 1)", NEVER),
        ('include { stage: "s" not_stage: "s" }', "", 'include rule (stage "s", not_stage "s")', NEVER),
        ("exclude { phase: TEST }", "", "exclude rule (phase TEST)", "make it in phase TEST too, or leave layer 'l'"),
        ('exclude { stage: "r" }', "r q", 'exclude rule (stage "r")', "give --stage q (stages=['q'] in Python)"),
        ('exclude { stage: "r" }', "r", 'exclude rule (stage "r")', "give --stage '' (stages=[] in Python)"),
        ('exclude { not_stage: "s" }', "", 'exclude rule (not_stage "s")', STAGE_S),
        ("exclude { min_level: 2 }", "3", "exclude rule (min_level 2)", "give --level 1 (level=1 in Python)"),
        ("exclude { max_level: 2 }", "1", "exclude rule (max_level 2)", "give --level 3 (level=3 in Python)"),
        ("exclude { }", "", "exclude rule (an empty one)", NEVER),
    ],
)
def test_a_maker_that_a_rule_leaves_out(rules: str, state: str, rule: str, fix: str) -> None:
    """`state`: stages, or a level."""
    stages = [word for word in state.split() if not word.isdigit()]
    level = int(state) if state.isdigit() else 0
    with pytest.raises(ForceregError) as info:
        shape_net(DATA + maker(rules) + LOSS, "TEST", level, stages)
    named = ", ".join(f'"{stage}"' for stage in stages)
    shown = (f"stage{'s' * (len(stages) > 1)} {named}" if stages else "no stage") + (f", level {level}" * bool(level))
    assert str(info.value).startswith(f"{HEAD} ({shown}): layer 'a' makes it, but its ")
    assert rule in str(info.value) and f" leaves it out; {fix}" in str(info.value)


def test_of_several_rules_the_nearest_is_told() -> None:
    with pytest.raises(ForceregError) as info:
        shape_net(DATA + maker('include { phase: TRAIN } include { stage: "s" }') + LOSS)
    told = 'but none of its 2 include rules (phase TRAIN; stage "s") lets it in; '
    assert str(info.value).endswith(told + STAGE_S)


RULES = [
    ('include { stage: "s" }', 0, ("r",)),
    ('include { not_stage: "r" stage: "s" stage: "q" }', 0, ("r", "q")),
    ('include { min_level: 2 stage: "s" }', -3, ()),
    ("include { max_level: -2 }", 0, ()),
    ('include { stage: "u" stage: "v" } include { stage: "s" }', 0, ()),
    ('exclude { stage: "r" stage: "q" }', 0, ("r", "q")),
    ('exclude { not_stage: "s" not_stage: "q" }', 1, ()),
    ("exclude { min_level: -1 }", 3, ()),
    ('exclude { max_level: 7 stage: "r" }', 1, ("r",)),
]


@pytest.mark.parametrize(("rules", "level", "stages"), RULES)
def test_the_fix_admits_the_layer(rules: str, level: int, stages: tuple[str, ...]) -> None:
    message = parse_net(f"layer {{ {rules} }}").message.layer[0]
    state = NetState(phase=TEST, level=level, stage=stages)
    found = left_out(message, state)
    fixed = NetState(phase=TEST, level=found.level, stage=found.stages)
    if message.include:
        assert not any(rule_matches(rule, state) for rule in message.include)
        assert any(rule_matches(rule, fixed) for rule in message.include)
    else:
        assert not any(rule_matches(rule, fixed) for rule in message.exclude)


def test_several_makers() -> None:
    text = DATA + maker('include { stage: "s" }') + maker("include { phase: TRAIN }", "b") + LOSS
    with pytest.raises(ForceregError) as info:
        shape_net(text)
    assert "layer 'a' makes it, but its include rule (stage \"s\") leaves it out, layer 'b' makes it, but " in str(
        info.value
    )
    assert str(info.value).endswith(STAGE_S)
    many = "".join(maker(f'include {{ stage: "{i}" }}', f"m{i}") for i in range(9))
    with pytest.raises(ForceregError, match="leaves it out, and 6 more; give --stage 0 "):
        shape_net(DATA + many + LOSS)


def test_a_maker_further_down_is_no_help() -> None:
    with pytest.raises(ForceregError, match=r"unknown bottom blob 'y'; known here are x, t$"):
        shape_net(DATA + LOSS + maker('include { stage: "s" }'))


def test_old_nets() -> None:
    text = (
        'input: "x" input_dim: 2 input_dim: 3 input_dim: 1 input_dim: 1\n'
        'layers { name: "a" type: RELU bottom: "x" top: "y" include { stage: "s" } }\n'
        'layers { name: "b" type: RELU bottom: "y" top: "z" }\n'
    )
    with pytest.raises(ForceregError) as info:
        shape_net(text)
    assert str(info.value).startswith(
        "<text>:3: layer 'b': unknown bottom blob 'y' in the TEST net (no stage): layer 'a'"
    )


def test_no_layer_left() -> None:
    text = 'layer { name: "a" type: "Input" top: "x" include { stage: "s" } }'
    with pytest.raises(ForceregError) as info:
        shape_net(text, "TRAIN")
    assert str(info.value) == (
        "<text>: no layer is left in phase TRAIN (no stage); "
        "of layer 'a' its include rule (stage \"s\") leaves it out; "
        f"check the include/exclude rules: {STAGE_S}"
    )


def test_two_makers_are_let_in() -> None:
    with pytest.raises(ForceregError) as info:
        shape_net(DATA + maker("include { phase: TRAIN }") + maker("", "b") + LOSS, "TRAIN")
    assert str(info.value) == (
        "<text>:3: layer 'b': top blob 'y' is already written by layer 'a'; both 'a' (include rule: phase TRAIN) and "
        "'b' (no rule) are in the TRAIN net (no stage): correct their rules or rename one of them "
        "(only an in-place layer may reuse its own bottom)"
    )


def test_an_in_place_layer_names_the_other_reader() -> None:
    relu = 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }\n'
    with pytest.raises(ForceregError, match=r"that is also read elsewhere \(by layer 'l'\) or weighted"):
        shape_net(DATA + maker("") + LOSS + relu)


# -- nets of a solver


def solve(folder: Path, run_cli: RunCli, net: str, more: str, *options: str) -> tuple[str, list[str]]:
    """The error of a training run, and the problems that `check` tells."""
    (folder / "n.prototxt").write_text(net)
    (folder / "solver.prototxt").write_text(SOLVER + more)
    trained = run_cli("train", "--solver", "solver.prototxt", *options, cwd=folder)
    checked = run_cli("check", "solver.prototxt", *options, cwd=folder)
    assert trained.returncode == checked.returncode == 1 and "Traceback" not in trained.stderr
    problems = [line for line in checked.stdout.splitlines() if line.startswith("problem: ")]
    return trained.stderr.splitlines()[-1].removeprefix("forcereg: "), [p.removeprefix("problem: ") for p in problems]


STAGED = DATA + maker('include { stage: "s" }') + LOSS
TOP_9 = '"Accuracy" include { phase: TEST } accuracy_param { top_k: 9 }'
FOR_TEST = "options are for the training net, for the test net write test_state"
MAKES = "layer 'a' makes it, but its include rule (stage \"s\") leaves it out;"


@pytest.mark.parametrize(
    ("net", "more", "options", "told"),
    [
        (STAGED, "", ("--stage", "s"), f'in the TEST net #0 (no stage): {MAKES} {FOR_TEST} {{ stage: "s" }}'),
        (
            STAGED,
            'test_state { stage: "r" level: 2 }',
            ("--stage", "s"),
            f'in the TEST net #0 (stage "r", level 2): {MAKES} {FOR_TEST} {{ stage: "r" stage: "s" level: 2 }}',
        ),
        (
            STAGED,
            'test_state { stage: "s" }',
            (),
            f'in the TRAIN net (no stage): {MAKES} give --stage s or write train_state {{ stage: "s" }}',
        ),
        (DATA + maker("") + LOSS.replace('"SoftmaxWithLoss"', TOP_9), "", (), "(in the TEST net #0)"),
        (DATA + maker("").replace("num_output: 3", ""), "", (), "(in the TRAIN net)"),
    ],
)
def test_solvers_name_the_net(
    tmp_path: Path, run_cli: RunCli, net: str, more: str, options: tuple[str, ...], told: str
) -> None:
    trained, checked = solve(tmp_path, run_cli, net, more, *options)
    assert told in trained
    # of an error in all nets `check` doesn't say whose it is
    everywhere = told == "(in the TRAIN net)"
    assert [told in problem for problem in checked] == [not everywhere]
    assert all(" (in the " not in problem for problem in checked) == (everywhere or "unknown bottom" in trained)


def test_a_single_net_is_not_named() -> None:
    with pytest.raises(ForceregError) as info:
        shape_net(DATA + maker("").replace("num_output: 3", ""))
    assert "net" not in str(info.value)


def test_test_nets_are_counted(tmp_path: Path, run_cli: RunCli) -> None:
    more = 'test_iter: 1 test_state { stage: "s" } test_state { }'
    trained, checked = solve(tmp_path, run_cli, STAGED, more, "--stage", "s")
    assert "in the TEST net #1 (no stage): " in trained and checked == [trained]


@pytest.mark.parametrize(
    ("command", "phase"),
    [
        (("summary", "n.prototxt"), "TEST"),
        (("summary", "n.prototxt", "--phase", "TRAIN"), "TRAIN"),
        (("draw", "n.prototxt", "n.txt"), "TEST"),
        (("time", "--model", "n.prototxt"), "TRAIN"),
        (("test", "--model", "n.prototxt", "--weights", "none.h5"), "TEST"),
    ],
)
def test_commands_name_the_phase(tmp_path: Path, run_cli: RunCli, command: tuple[str, ...], phase: str) -> None:
    (tmp_path / "n.prototxt").write_text(STAGED)
    done = run_cli(*command, "--level", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert f"in the {phase} net (no stage, level 1): {MAKES} {STAGE_S}" in done.stderr


def test_titles() -> None:
    state = net_state(TRAIN)
    assert Title().short(state) == Title(solver=True).short(state) == ""
    assert Title(solver=True, several=True).short(state) == "TRAIN net"
    state = NetState(phase=TEST, stage=["a"], level=2)
    assert Title(solver=True, number=1, several=True).short(state) == 'TEST net #1 (stage "a", level 2)'
    message = LayerParameter(name="m", exclude=[{"stage": ["a"]}])
    told = way_in([left_out(message, state)], state, Title(solver=True, number=1))
    assert told.endswith("for the test net write test_state { level: 2 }")
    with pytest.raises(
        ForceregError, match=r"^<text>:1: layer 'm': .*\(in the TEST net #1 \(stage \"a\", level 2\)\)$"
    ):
        build_spec(
            parse_net('layer { name: "m" type: "ReLU" bottom: "q" top: "q" }'), state, None, Title(True, 1, True)
        )
