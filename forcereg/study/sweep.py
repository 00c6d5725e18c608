"""A grid of trainings, each cut to low rank and fine-tuned: which setting gives the best net at which cost?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from forcereg.study.grid import Setting
from forcereg.study.sweep_plan import Plan, Result, runs_of
from forcereg.study.sweep_run import Warnings, known_result, run


def sweep(
    plan: Plan,
    settings: Sequence[Setting],
    out: Path,
    tell: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
) -> Iterator[Result]:
    """Runs what has not been run yet, one folder each below `out`, and yields every result in order.

    `tell` is called with how it goes, `warn` with every warning once; without `warn`, `tell` is with that word before.
    All settings are looked at before the first one runs. A run that was interrupted goes on from its newest snapshot;
    one that came to a loss or weight that isn't finite is told, yielded and tried again next time. Raises ForceregError
    for all else, as for a full disk; KeyboardInterrupt once a run that was told to stop has saved itself.
    """
    identities = runs_of(plan, settings, out)
    heard = Warnings(warn or (lambda text: tell(f"warning: {text}")))
    untried = not plan.rule.scores  # a cut that can't be is told by the first net, before hours of training
    for number, (setting, identity) in enumerate(zip(settings, identities, strict=True), 1):
        folder = out / setting.folder
        known = known_result(plan, setting, folder)
        if known is not None:
            tell(f"{number} of {len(settings)}: {setting.folder}: done before")
            yield known
            continue
        tell(f"{number} of {len(settings)}: {setting.folder}")
        result = run(plan, setting, identity, folder, heard, untried)
        untried = False
        if result.failed:
            tell(f"failed: {result.failed}")
        yield result
