"""Caffe's forms of options, what shell completion offers, and the help of every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from forcereg.__main__ import COMMANDS, cli
from forcereg.commands import train
from forcereg.commands.gflags import CaffeCommand, arguments
from forcereg.commands.options import asked_devices
from forcereg.errors import UsageError
from tests.commands.conftest import Cli, said
from tests.conftest import TOP

CAFFE = ("train", "test", "time", "device_query")


def options(*args: str) -> dict[str, object]:
    """What `forcereg train` is given."""
    return train.command.make_context("train", list(args)).params


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["--solver", "s", "--sigint-effect", "none", "--gpu", "0,1"], id="ours"),
        pytest.param(["--solver=s", "--sigint-effect=none", "--gpu=0,1"], id="equals"),
        pytest.param(["-solver", "s", "-sigint_effect", "none", "-gpu", "0,1"], id="gflags"),
        pytest.param(["-solver=s", "-sigint_effect=none", "-gpu=0,1"], id="gflags-equals"),
        pytest.param(["--solver=s", "--sigint_effect", "none", "-gpu=0,1"], id="mixed"),
        pytest.param(
            ["-logtostderr", "-solver=s", "-v", "1", "--minloglevel=2", "-sigint_effect=none", "-gpu=0,1"], id="glog"
        ),
    ],
)
def test_forms_of_options(args: list[str]) -> None:
    found = options(*args)
    assert {name: found[name] for name in ("solver", "sigint_effect", "gpu", "weights")} == {
        "solver": "s", "sigint_effect": "none", "gpu": "0,1", "weights": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        pytest.param(["-solver=a=b"], "solver", "a=b", id="equals-in-value"),
        pytest.param(["-solver", "-weights"], "solver", "-weights", id="value-like-an-option"),
        pytest.param(["-solver=s", "-weights="], "weights", "", id="empty"),
        pytest.param(["-solver=s", "-level", "-3"], "level", -3, id="negative"),
        pytest.param(["-solver=s", "-set", "a_b=-c_d"], "settings", ("a_b=-c_d",), id="underscores-in-value"),
        pytest.param(["-solver=s", "-deterministic", "-stage", "x"], "stage", "x", id="behind-a-switch"),
    ],
)
def test_values_stay_as_they_are(args: list[str], name: str, value: object) -> None:
    assert options(*args)[name] == value


def test_what_is_handed_to_other_processes() -> None:
    context = train.command.make_context("train", ["-solver", "s", "-gpu=0,1", "--max_iter", "3", "-tf32"])
    assert arguments(context) == ["--solver", "s", "--gpu=0,1", "--max-iter", "3", "--tf32"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["train", "-sovler=x"], "No such option '--sovler'.", id="long"),
        pytest.param(["train", "-x"], "No such option '-x'.", id="short"),
        pytest.param(["train", "-solver"], "requires an argument", id="no-value"),
        pytest.param(["train", "-solver="], "'--solver': it is empty", id="empty"),
        pytest.param(["test", "-model=x", "-weights="], "'--weights': it is empty", id="empty-weights"),
        pytest.param(["test", "-model=x", "-weights=a,b"], "'a,b'; a single model can be scored", id="two-to-test"),
        pytest.param(["-solver=x", "-gpu", "y", "train"], "--gpu is 'y'", id="options-before-the-command"),
        pytest.param(["-solver=x"], "No such option", id="options-without-a-command"),
        pytest.param(["train", "-solver=x", "-sigint_effect=die"], "'die' is not one of 'stop', 'snapshot', 'none'",
                     id="effect"),
        pytest.param(["train", "-solver=x", "--resume", "yes"], "'--resume'", id="resume"),
        pytest.param(["train", "-solver=x", "--resume=auto", "--snapshot=y"], "--snapshot and --resume", id="both"),
        pytest.param(["train", "-solver=x", "--amp=fp8"], "'fp8' is not one of 'bf16', 'fp16'", id="amp"),
        pytest.param(["train", "-solver=x", "-max_iter=-1"], "'--max-iter'", id="max-iter"),
    ],
)  # fmt: skip
def test_bad_usage(args: list[str], says: str, cli: Cli) -> None:
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert says in said(err)


@pytest.mark.parametrize(
    ("gpu", "device", "devices"),
    [
        pytest.param(None, None, [None], id="neither"),
        pytest.param("", None, [None], id="empty-as-in-caffe"),
        pytest.param(None, "cpu", ["cpu"], id="device"),
        pytest.param("1", None, ["cuda:1"], id="one"),
        pytest.param("2,0", None, ["cuda:2", "cuda:0"], id="several"),
    ],
)
def test_devices(gpu: str | None, device: str | None, devices: list[str | None]) -> None:
    assert asked_devices(gpu, device) == devices


def test_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for count, devices in ((0, ["cuda"]), (1, ["cuda:0"]), (3, ["cuda:0", "cuda:1", "cuda:2"])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert asked_devices("all", None) == devices


@pytest.mark.parametrize("gpu", ["x", "-1", "0,", "0,0", "0,00", "1.5", "0 1", "²"])
def test_what_is_no_list_of_gpus(gpu: str) -> None:
    with pytest.raises(UsageError, match=rf"--gpu is '{gpu}'; "):
        asked_devices(gpu, None)


# -- help


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, those of groups too, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)


def test_help_of_every_command_has_an_example(cli: Cli) -> None:
    found = dict(commands(sys.modules["forcereg.__main__"].cli))
    assert {names[0] for names in found} == set(COMMANDS)
    for names in found:
        code, out, err = cli(*names, "--help")
        assert (code, err) == (0, ""), names
        assert re.search(rf"^ *(Example: )?forcereg {' '.join(names)} ", out, re.MULTILINE), names


@pytest.mark.parametrize(("option", "shows"), [("-help", "Usage: forcereg"), ("-version", "forcereg ")])
def test_options_of_the_group_with_one_dash(option: str, shows: str, cli: Cli) -> None:
    assert (cli(option)[0], cli(option)[1].startswith(shows)) == (0, True)


def test_caffes_commands_take_caffes_options() -> None:
    wanted = {
        "train": "solver snapshot weights gpu level stage sigint-effect sighup-effect",
        "test": "model weights gpu iterations level stage",
        "time": "model weights gpu iterations phase level stage",
        "device_query": "gpu",
    }
    context = click.Context(cli)
    for name, options in wanted.items():
        command = cli.get_command(context, name)
        assert isinstance(command, CaffeCommand)
        known = {opt for param in command.params for opt in param.opts}
        assert {f"--{option}" for option in options.split()} <= known, name


# -- shell completion


def completed(*words: str) -> list[str]:
    """What bash offers for the last word."""
    env = {**os.environ, "PYTHONPATH": str(TOP), "_FORCEREG_COMPLETE": "bash_complete",
           "COMP_WORDS": " ".join(("forcereg", *words)), "COMP_CWORD": str(len(words))}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "forcereg"], env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param(["t"], {"plain,train", "plain,test", "plain,time", "plain,tune"}, id="command"),
        pytest.param(["train", "--sig"], {"plain,--sigint-effect", "plain,--sighup-effect"}, id="option"),
        pytest.param(["train", "-sig"], {"plain,-sigint-effect", "plain,-sighup-effect"}, id="single-dash"),
        pytest.param(["train", "--sigint-effect", "s"], {"plain,stop", "plain,snapshot"}, id="value"),
        pytest.param(["train", "-sigint_effect", "s"], {"plain,stop", "plain,snapshot"}, id="value-behind-one-dash"),
        pytest.param(["train", "--solver", "so"], {"file,so"}, id="file"),
        pytest.param(["train", "-solver", "so"], {"file,so"}, id="file-behind-one-dash"),
        pytest.param(["train", "-solver", "s", "-snap"], {"plain,-snapshot"}, id="next-option"),
        pytest.param(["summary", "ne"], {"file,ne"}, id="argument"),
        pytest.param(["trian", "--v"], {"plain,--version"}, id="unknown-command"),
    ],
)
def test_completion(words: list[str], offered: set[str]) -> None:
    assert set(completed(*words)) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FORCEREG_COMPLETE", f"{shell}_source")
    code, out, _ = cli()
    assert code == 0
    assert "_FORCEREG_COMPLETE" in out
    assert "forcereg" in out


def test_completion_does_not_load_torch() -> None:
    code = (
        "import sys\nfrom forcereg.__main__ import main\n"
        "try: main([])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(TOP), "_FORCEREG_COMPLETE": "bash_complete",
           "COMP_WORDS": "forcereg train --", "COMP_CWORD": "2"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "plain,--solver" in done.stdout
    assert done.returncode == 0


def test_nothing_is_shown_twice(cli: Cli) -> None:
    """Help names each option once, with two dashes."""
    _, out, _ = cli("train", "--help")
    assert out.count("--sigint-effect") == 1
    assert "sigint_effect" not in out
