"""forcereg finetune"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands import train
from forcereg.commands.gflags import CaffeCommand
from forcereg.errors import ForceregError, UsageError, storable

if TYPE_CHECKING:
    from forcereg.schema.text import SolverFile
    from forcereg.solver.loop import Solver

ENDING = "_finetuned"


@click.command(
    cls=CaffeCommand,
    params=[
        click.Option(["--model"], required=True, metavar="FILE", type=click.Path(),
                     help="Net prototxt that takes the place of the solver's, as decompose wrote it."),
        click.Option(["--test-model"], metavar="A,B", type=click.Path(),
                     help="Where the solver's test nets are files of their own: what takes their place."),
        click.Option(["--keep-force"], is_flag=True,
                     help="Let the solver's force act on the parts of decomposed layers too."),
        *train.command.params,
    ],
    epilog="\b\nExample: forcereg finetune --model net_lowrank.prototxt --weights net_lowrank.caffemodel.h5 --solver S",
)  # fmt: skip
@click.pass_context
def command(ctx: click.Context, /, model: str, test_model: str | None, keep_force: bool, **options: Any) -> None:
    """Train a decomposed net further, by the solver that the original was trained with.

    The solver's nets are replaced, all else holds: its rates, its length (--max-iter), its force on layers that are
    whole. On the parts of decomposed layers there is none, unless --keep-force asks for it: it would lower their ranks
    further. Snapshots go to its snapshot_prefix with _finetuned behind, so that the original's stay, unless --set
    snapshot_prefix says otherwise. Options are those of train.
    """
    if not (options["weights"] or options["snapshot"]):
        raise UsageError("--weights is missing: the model that decompose wrote beside the net; or --snapshot to go on")
    own_prefix = any(setting.partition("=")[0].strip() == "snapshot_prefix" for setting in options["settings"])
    said = list[str]()

    def arrange(file: SolverFile) -> SolverFile:
        made = with_net(file, model, test_model, None if own_prefix else ENDING)
        if keep_force:
            return made
        made, text = spared(made)
        said.extend([text] if text else [])
        return made

    def remark(solver: Solver) -> None:
        for text in said:
            solver.emit("note", text=text)

    train.run(ctx, options, arrange, check_chains, remark)


def check_chains(solver: Solver, fresh: Collection[str]) -> None:
    """Raises ForceregError if the layers `fresh`, without weights, are of a chain: it would be tuned from nothing."""
    from forcereg.solver.clipping import chains_of

    for chain in chains_of(solver.net):
        if lacking := [part for part in chain.parts if part in fresh]:
            raise ForceregError(
                f"{solver.net.spec.filename}: --weights lacks {', '.join(lacking)} in place of '{chain.name}'; "
                "give the model that decompose wrote beside this net"
            )


def with_net(file: SolverFile, model: str, test_model: str | None, ending: str | None) -> SolverFile:
    """The solver with other nets, and `ending` behind its snapshot_prefix; its paths start where they did.

    Raises UsageError unless `test_model` names as many nets as the solver has test nets of their own.
    """
    from forcereg.schema import SolverParameter
    from forcereg.schema.text import SolverFile, read_net
    from forcereg.solver.setup import TRAIN_FIELDS, complete_prefix, solver_root

    root = solver_root(file)
    param = SolverParameter()
    param.CopyFrom(file.message)
    tests = [name.strip() for name in (test_model or "").split(",") if name.strip()]
    own = len(param.test_net) + len(param.test_net_param)
    if len(tests) != own:
        there = ", ".join(param.test_net) or f"{own} inline" if own else "none"
        raise UsageError(
            f"{file.name} has {own} test nets of their own ({there}), --test-model names {len(tests)}; decompose each "
            "alike (decompose --model) and name them"
        )
    for name in (*TRAIN_FIELDS, "test_net", "test_net_param"):
        param.ClearField(name)
    paths = [storable(name if root == Path.cwd() else Path(name).resolve()) for name in (model, *tests)]
    for path in paths:
        read_net(path)  # what is wrong with it is told before anything else
    param.net, param.test_net[:] = paths[0], paths[1:]
    made = SolverFile(param, file.name, file.text, root)
    if ending and param.snapshot_prefix:
        complete_prefix(made, root)
        param.snapshot_prefix += ending
    return made


def spared(file: SolverFile) -> tuple[SolverFile, str]:
    """The solver of `with_net` without force on parts of chains, and what to say of it; '' where there was none.

    Where nothing else has force_mult force_decay becomes 0; else the net goes into the solver, the parts' force_mult
    left out. So that what a snapshot keeps of solver and net says what was trained.
    """
    from forcereg.schema.text import read_net, to_text
    from forcereg.solver.chains import without_chain_force

    param = file.message
    if not param.force_decay:
        return file, ""
    net = read_net(param.net)
    bare, lost, kept = without_chain_force(net.message)
    if not lost:
        return file, ""
    if kept:
        param.ClearField("net")
        param.net_param.CopyFrom(bare)
        file = replace(file, inline=replace(net, message=bare, text=to_text(bare)))
    else:
        param.force_decay = 0
    rest = f"it stays on {', '.join(kept)}" if kept else "nothing else has force_mult, so force_decay is 0"
    return file, f"No force on {', '.join(lost)}, the parts of decomposed layers (--keep-force: there too); {rest}"
