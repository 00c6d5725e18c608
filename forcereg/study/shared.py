"""A study of Optuna's that several processes and machines may share: its trials are given out, and known of all.

Each process has a folder; those that share one see by its claims which of its trials nobody runs any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.study.jobs.job import DEADLY
from forcereg.study.sweep_plan import Result
from forcereg.study.tune_space import Space
from forcereg.system import sidefiles
from forcereg.system.claims import Claim, Watch, held
from forcereg.system.files import make_folder, write_text

JOURNAL = "study.journal"
"""The study's file in a search's folder, where no other place is named."""
RUNNING = "running"
"""The folder of a file for each trial that runs; one that nobody holds is of a trial whose process was killed."""
NAME = "forcereg tune"
"""The study's name there."""
ASKED, PLAIN, FIELDS, MARK, RESULT, FAILED = "asked", "without_force", "fields", "mark", "result", "failed"
CALL, DEATHS = "call", "deaths"
"""What studies (the first) and trials say of themselves, as attributes."""
PRUNED = "pruned at iteration"
"""What opens the reason of a trial that was worse than others, and not one that couldn't go on."""
FIRST = 5
"""Trials that are complete before another may be pruned."""


@dataclass(frozen=True)
class Tried:
    """What a trial came to. `state`: complete, pruned, failed or running; `value`: the goal's, if it is complete."""

    number: int
    state: str
    result: Result
    value: float | None = None


@dataclass(frozen=True)
class Taken:
    """A trial that this process runs, and the solver fields that it is to have."""

    trial: Any
    fields: dict[str, str]
    plain: bool
    held: Claim

    @property
    def number(self) -> int:
        """From 0, in the study."""
        return int(self.trial.number)


def optuna() -> Any:
    """The module. Raises ForceregError without it."""
    try:
        import optuna
    except ImportError:
        raise ForceregError('tune needs optuna; install it with pip install "forcereg[tune]"') from None
    return optuna


@contextlib.contextmanager
def heard(warn: Callable[[str], None]) -> Iterator[None]:
    """Has what Optuna warns of told to `warn`, and nothing of its log printed."""
    optuna()  # it gives its log a handler, which prints
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warn(f"optuna: {record.getMessage()}")  # type: ignore[method-assign]
    logger = logging.getLogger("optuna")
    level, logger.handlers, before = logger.level, [handler], logger.handlers
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers = before
        logger.setLevel(level)


class Shared:
    """The study at `where` (a file, or a database's URL), of which this process's runs are in the folder `out`.

    `asked`: what tells it from other studies, by name. `falling`: values are to be little. A median pruner stops trials
    from iteration `warm` on. `call`: one word for all processes of one call, if it has several. Raises ForceregError
    for a study of something else, and wherever it can't be reached.
    """

    def __init__(
        self,
        where: str,
        out: Path,
        asked: Mapping[str, Any],
        space: Space,
        seed: int,
        falling: bool,
        warm: int,
        call: str = "",
    ) -> None:
        self._optuna, self._place, self._out, self._space, self._seed = optuna(), where, out, space, seed
        self._where = re.sub(r"(://[^:/@]*:)[^@]*@", r"\1...@", where)  # errors show no password
        self._direction, self._warm, self._call = "minimize" if falling else "maximize", warm, call
        self._watch, self._lock = Watch(), out / RUNNING / "lock"
        make_folder(out / RUNNING)
        with held(self._lock, self._watch), self._reached():
            self._study = self._created()
            self._begin(json.loads(json.dumps(asked)))

    def _created(self) -> Any:
        pruner = self._optuna.pruners.MedianPruner(FIRST, self._warm)
        return self._optuna.create_study(
            study_name=NAME,
            storage=self._storage(),
            direction=self._direction,
            load_if_exists=True,
            pruner=pruner,
        )

    def _storage(self) -> Any:
        if "://" in self._place:
            return self._place
        journal = self._optuna.storages.journal.JournalFileBackend(self._place)
        return self._optuna.storages.JournalStorage(journal)

    def _begin(self, asked: dict[str, Any]) -> None:
        """Says what the study is, and has the trial without force come first; or looks whether it is this one."""
        self._revive()
        known = self._study.user_attrs.get(ASKED)
        if known == asked:
            return
        if known is not None:
            if self.counted:
                raise self._another(known, asked)
            # nothing came of it, as of a goal that can't be reached
            self._optuna.delete_study(study_name=NAME, storage=self._storage())
            self._study = self._created()
        elif self._study.get_trials(deepcopy=False):
            raise ForceregError(f"{self._where}: holds a study that isn't forcereg's; give another --study or --out")
        self._study.set_user_attr(ASKED, asked)
        self._study.enqueue_trial({}, {PLAIN: True}, skip_if_exists=True)

    def _another(self, known: Any, asked: Mapping[str, Any]) -> ForceregError:
        was = known if isinstance(known, dict) else {}
        what = next((name for name in asked if was.get(name) != asked[name]), "settings")
        shown = (
            "" if what in ("solver", "net", "weights") else f" ({_said(was.get(what))}; now {_said(asked.get(what))})"
        )
        said = what.replace("_", " ")
        return ForceregError(f"{self._where}: holds a study with other {said}{shown}; give another --study or --out")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Whatever keeps Optuna from the study (a file cut short, no database, no driver for it) as one line."""
        try:
            yield
        except ForceregError:
            raise
        except Exception as error:
            why = (str(error).splitlines() or [""])[0]
            raise ForceregError(
                f"{self._where}: can't be used as a study ({type(error).__name__}: {why}); give another --study, or "
                "mend or delete it"
            ) from error

    # -- trials

    @contextlib.contextmanager
    def take(self, most: int) -> Iterator[Taken | None]:
        """A trial for this process to run in the block; None if `most` are done or run elsewhere.

        One that another process left when it was killed is begun again before a new one is.
        """
        path = self._out / RUNNING / uuid.uuid4().hex
        with contextlib.ExitStack() as stack:
            with held(self._lock, self._watch), self._reached():
                self._revive()
                taken = None
                if self.counted < most:
                    own = stack.enter_context(held(path))
                    write_text(path, "")
                    taken = self._taken(path.name, own)
            yield taken
            if taken is not None:
                path.unlink(missing_ok=True)

    def _taken(self, mark: str, own: Claim) -> Taken:
        trial = self._study.ask()
        trial.set_user_attr(MARK, mark)
        trial.set_user_attr(CALL, self._call)
        # by its number, but for those that were killed: no two processes try the same, and a search that goes on tries
        # what it would have tried
        number = trial.number - len(self._study.get_trials(deepcopy=False, states=(self._state("FAIL"),)))
        seed = (1_000_003 * self._seed + number) % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, multivariate=False)
        plain = bool(trial.user_attrs.get(PLAIN))
        fields = self._space.without_force if plain else self._space.suggest(trial)
        trial.set_user_attr(FIELDS, fields)
        return Taken(trial, fields, plain, own)

    @property
    def counted(self) -> int:
        """Trials that are done or run; not those that were killed, whose settings come again."""
        wanted = self._state("RUNNING"), self._state("COMPLETE"), self._state("PRUNED")
        return len(self._study.get_trials(deepcopy=False, states=wanted))

    @property
    def waited_for(self) -> bool:
        """Whether processes of this folder run trials, which would be this one's if they were killed."""
        with self._reached():
            return any(self._marker(one) is not None for one in self._running())

    @property
    def elsewhere(self) -> int:
        """How many trials processes of other folders run, as far as is known."""
        with self._reached():
            return sum(self._marker(one) is None for one in self._running())

    def _running(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False, states=(self._state("RUNNING"),))

    def _marker(self, trial: Any) -> Path | None:
        """The file of a trial that runs; None for another folder's."""
        mark = str(trial.user_attrs.get(MARK))
        path = self._out / RUNNING / mark
        return path if re.fullmatch("[0-9a-f]{32}", mark) and path.is_file() else None

    def _revive(self) -> None:
        """Has the settings of trials come again whose processes were killed."""
        for one in self._running():
            path = self._marker(one)
            if path is not None and not self._watch.is_held(path):
                self._again(one)
                for left in path.parent.glob(f"{path.name}*"):
                    left.unlink(missing_ok=True)

    def _again(self, killed: Any) -> None:
        """The settings of a trial whose process was killed come again, unless that happens each time."""
        known = killed.user_attrs
        count = _known(known.get(DEATHS), int) or 0
        deaths = count + 1 if self._call and known.get(CALL) == self._call else 0
        self._study.tell(killed.number, state=self._state("FAIL"))
        if deaths >= DEADLY:
            told = {FIELDS: known.get(FIELDS), FAILED: f"{deaths} workers that ran it were killed"}
            like = {"params": killed.params, "distributions": killed.distributions, "user_attrs": told}
            self._study.add_trial(self._optuna.trial.create_trial(state=self._state("PRUNED"), **like))
            return
        again = {DEATHS: deaths, **({PLAIN: True} if known.get(PLAIN) else {})}
        self._study.enqueue_trial(dict(killed.params), again)

    def hopeless(self, taken: Taken, iteration: int, value: float) -> bool:
        """Tells how a trial stands; whether that is worse than the median of those that are complete."""
        with self._reached():
            taken.trial.report(value, iteration)
            return bool(taken.trial.should_prune())

    def finish(self, taken: Taken, result: Result, value: float | None) -> None:
        """Tells what a trial came to, or with `value` None why it has `failed`.

        Raises Lost if it has come again elsewhere, since this process stood still.
        """
        taken.held.check(look=True)
        with self._reached():
            if value is None:
                taken.trial.set_user_attr(FAILED, result.failed)
                # as pruned: so the search learns to keep away from there
                self._study.tell(taken.trial, state=self._state("PRUNED"))
            else:
                taken.trial.set_user_attr(RESULT, asdict(result))
                self._study.tell(taken.trial, value)

    def tried(self) -> list[Tried]:
        """All trials, in order, but for those that come again."""
        with self._reached():
            states = {"RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned"}
            named = {self._state(name): told for name, told in states.items()}
            trials = self._study.get_trials(deepcopy=False, states=tuple(named))
        return [_tried(one, named[one.state], self._seed) for one in trials]

    def _state(self, name: str) -> Any:
        return self._optuna.trial.TrialState[name]


def _tried(one: Any, state: str, seed: int) -> Tried:
    """A trial as its attributes tell it; what is of another form there counts for nothing."""
    fields = _known(one.user_attrs.get(FIELDS), dict[str, str]) or {}
    if state == "complete":
        result = _known(one.user_attrs.get(RESULT), Result)
        if result is not None:
            return Tried(one.number, state, result, one.value)
        return Tried(one.number, "failed", Result(fields, seed, failed="its result can't be read"))
    failed = _known(one.user_attrs.get(FAILED), str) or ""
    state = "failed" if state == "pruned" and not failed.startswith(PRUNED) else state
    return Tried(one.number, state, Result(fields, seed, failed=failed))


def _known(value: Any, form: Any) -> Any:
    try:
        return sidefiles.of_form(value, form)
    except ValueError:
        return None


def _said(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
