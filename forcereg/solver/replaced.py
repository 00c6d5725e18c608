"""A solver with another net in place of its own: a decomposed one, that it trains further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from forcereg.errors import UsageError, storable
from forcereg.schema import SolverParameter
from forcereg.schema.text import SolverFile, read_net, to_text
from forcereg.solver.chains import without_chain_force
from forcereg.solver.setup import TRAIN_FIELDS, complete_prefix, solver_root
from forcereg.system.paths import StrPath, listed


def with_net(
    file: SolverFile, model: StrPath, test_model: StrPath | Sequence[StrPath] | None, ending: str | None
) -> SolverFile:
    """The solver with other nets, and `ending` behind its snapshot_prefix; its paths start where they did.

    Raises UsageError unless `test_model` names as many nets as the solver has test nets of their own.
    """
    root = solver_root(file)
    param = SolverParameter()
    param.CopyFrom(file.message)
    tests = [] if test_model is None else listed(test_model)
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
