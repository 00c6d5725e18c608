"""Scoring nets that share a solver's test data, and fine-tuning them: nothing is computed twice."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forcereg import snapshot
from forcereg.data.feed import DEFAULT_BUDGET, Feed, FeedContext
from forcereg.errors import ForceregError, UsageError, storable
from forcereg.lowrank.decompose import Prepared
from forcereg.lowrank.fold import fold_bn
from forcereg.lowrank.ranks import Choice
from forcereg.lowrank.rewrite import Weights
from forcereg.net.load import net_file
from forcereg.net.module import Net
from forcereg.net.scoring import Score, check_blobs, score, unfed
from forcereg.schema import TEST
from forcereg.schema.rules import Title, net_state
from forcereg.schema.spec import NetSpec, build_spec
from forcereg.schema.text import NetFile, SolverFile, net_from_message, parse_net, to_text
from forcereg.solver.prefix import writes_binary
from forcereg.solver.setup import problems, solver_root, tested_nets, trained_net
from forcereg.study.scores import Cache, Evaluation, data_files, digest, origin, stamp
from forcereg.study.tuning import load, tune, tuning
from forcereg.system.device import choose_device, prepare
from forcereg.system.events import Event
from forcereg.system.files import make_folder
from forcereg.system.paths import StrPath


class Evaluator:
    """Scores nets on the first test net of a solver, all on the same records, and fine-tunes them.

    The nets given are as snapshots of training keep them, with a test phase: its rules are matched against the
    solver's test state, its paths start where the solver's do. `cache`: a JSON file of what was scored before, by
    content; nets with Python layers aren't kept there, since their code may change. `device`, `budget`, `workers` and
    `allow_python_layers` as `Solver`'s; `teacher`: a snapshot that teaches what is fine-tuned; `tell` gets each warning
    once. `runs`: how many scores weren't known before.
    Raises ForceregError for anything wrong in the solver.
    """

    def __init__(
        self,
        solver: SolverFile,
        *,
        device: str | None = None,
        cache: Path | None = None,
        budget: int = DEFAULT_BUDGET,
        workers: int = 0,
        allow_python_layers: bool = False,
        teacher: StrPath | None = None,
        tell: Callable[[str], None] = warnings.warn,
    ) -> None:
        for problem in problems(solver.message, solver.name):
            raise problem
        self.solver, self.root, self.runs = solver, solver_root(solver), 0
        self.teacher = None if teacher is None else Path(teacher).resolve()
        train = trained_net(solver, self.root)
        self.train_file = train.file
        tests = tested_nets(solver, self.root, train.file)
        if not tests:
            raise ForceregError(f"{solver.name}: has no test net to score with; set test_iter and test_interval")
        self.test_file = None if tests[0].file is train.file else tests[0].file
        """The test net, where it is another file than the one that is trained."""
        self._told, self._tell = set[str](), tell
        self.device = choose_device(device, solver.message, self.warn)
        # without a seed nets on random data couldn't be compared, nor their scores kept
        seed = solver.message.random_seed
        self.seed = int(seed) if seed >= 0 else 1
        self._allow = allow_python_layers
        self._options: dict[str, Any] = {"device": device, "budget": budget, "workers": workers}
        self._options["allow_python_layers"] = allow_python_layers
        self._context = FeedContext(self.root, self.device, self.seed, budget, workers)
        self._cache = Cache(None if allow_python_layers else cache)
        self._feeds: Sequence[Feed] = ()  # of the last net: while they live the next one shares the decoded set

    def warn(self, text: str) -> None:
        """Tells it unless it was told before."""
        if text not in self._told:
            self._told.add(text)
            self._tell(text)

    def _heard(self, event: Event) -> None:
        if event.kind == "warning":
            self.warn(event.text)

    # -- scores

    def score(self, net: Any, weights: Weights, made_of: str | None = None) -> Evaluation:
        """Accuracy and loss of a net (NetParameter, NetFile or path) with these weights, over test_iter batches.

        With a solver whose test net is a file of its own, `net` is that one, decomposed (see `tested`). `made_of`:
        what tells the weights from others (see `origin`); None: their content. Raises ForceregError for a net
        without test data (a deploy net) and for weights that lack a layer.
        """
        spec = self._spec(net_file(net))
        key = self.key(spec, made_of or digest(None, weights))
        found = self._cache.get(key)
        if found is None:
            found = self._scored(spec, weights)
            self.runs += 1
            self._cache.put(key, found)
        return found

    def _spec(self, file: NetFile) -> NetSpec:
        states = list(self.solver.message.test_state[:1])
        # so that errors say which of the solver's nets it is
        title = Title(solver=True, number=0)
        return build_spec(file, net_state(TEST, file.message.state, *states), self.root, title)

    def net(self, file: NetFile, weights: Weights) -> tuple[Net, int]:
        """The net that scores these weights, which feeds itself, and its number of batches. Raises as `score`."""
        return self._fed(self._spec(file), weights), int(self.solver.message.test_iter[0])

    def _fed(self, spec: NetSpec, weights: Weights) -> Net:
        for text in spec.warnings:
            self.warn(text)
        prepare(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        net = Net(spec, self._context, None, generator, self._allow).place(self.device)
        if missing := unfed(net):
            raise ForceregError(
                f"{spec.filename}: its test phase reads no data (input {', '.join(missing)}; a deploy net?); "
                "give the net that was trained, with its data layers"
            )
        # of all phases: weights of layers that only training has aren't lost
        known = {layer.name for layer in parse_net(spec.text, spec.filename).message.layer}
        if lost := [name for name in load(net, weights).ignored if weights[name] and name not in known]:
            self.warn(f"{spec.filename}: has no layer for the weights of {', '.join(lost)}")
        check_blobs(net, self.device)
        return net

    def _scored(self, spec: NetSpec, weights: Weights) -> Evaluation:
        net = self._fed(spec, weights)
        means = score(net, self.solver.message.test_iter[0])
        for feed in self._feeds:  # not before the new net has taken over what they decoded
            feed.close()
        self._feeds = list(net.feeds.values())
        return Evaluation(accuracy_among(net, means), means.loss)

    def key(self, spec: NetSpec, made_of: str) -> str:
        """Names what a score depends on: the test net, the files it reads, test_iter, seed, and the weights."""
        # of this phase alone: what training has beside it changes no score
        layers = [to_text(layer.message) for layer in spec.layers]
        files = [stamp(path) for path in data_files(spec)]
        return digest([layers, files, self.solver.message.test_iter[0], self.seed, made_of])

    def tested(self, prepared: Prepared, weights: Weights) -> Prepared:
        """What makes the nets to score: the same, or with the solver's test net where that is a file of its own.

        `weights`: those that `prepared` was made from. Raises ForceregError if that test net lacks a layer that is to
        be decomposed.
        """
        file = self.test_file
        if file is None:
            return prepared
        if prepared.folded:  # with the trained net's statistics, as the net that is decomposed was
            file = net_from_message(fold_bn(file.message, weights)[0], file.name)
        known = {layer.name for layer in file.message.layer}
        firsts = {name: chain.parts[0] for name, chain in prepared.chains.items()}
        for one in prepared.candidates:
            if firsts.get(one.name, one.name) not in known:
                raise ForceregError(f"{file.name}: the test net lacks layer '{one.name}' of the net that is decomposed")
        return replace(prepared, file=file)

    def accuracy(self, prepared: Prepared, weights: Weights) -> Callable[[Mapping[str, Choice]], float]:
        """The accuracy of a net at any choice of ranks; `weights`: those that `prepared` was made from.

        Raises ForceregError, then or when called, as `tested` and `score`, and for a test net without an accuracy.
        """
        tested = self.tested(prepared, weights)

        def accuracy(choices: Mapping[str, Choice]) -> float:
            made = tested.apply(choices)
            net = net_from_message(made.net, tested.file.name)
            found = self.score(net, made.weights, origin(prepared, choices)).accuracy
            if found is None:
                raise ForceregError(f"{tested.file.name}: has no Accuracy layer in its test phase; add one")
            return found

        return accuracy

    # -- fine-tuning

    def finetune(
        self,
        net: Any,
        weights: Weights,
        iterations: int,
        folder: Path,
        test: Any = None,
        made_of: str | None = None,
    ) -> tuple[Evaluation, Weights]:
        """Trains a decomposed net without force at a tenth of base_lr; its scores behind that, and its weights.

        `test`: the test net if that isn't in `net`; `made_of` as in `score`. Log and snapshots go to `folder`, named
        by content: what was interrupted goes on, what is done isn't done again. Raises ForceregError if the loss or
        a weight isn't finite; KeyboardInterrupt once a run that was told to stop has saved itself.
        """
        param = tuning(self.solver, net_file(net), test and net_file(test), iterations, self.seed)
        # of a teacher only where there is one: what was tuned before there were any is still known
        decided = [to_text(param), made_of or digest(None, weights), *taught_by(self.teacher).values()]
        prefix = folder.resolve() / f"tuned_{digest(decided)[:12]}"
        param.snapshot_prefix = storable(prefix)
        # named by content, so that another net, rate or length never goes on from this one's snapshots
        done = snapshot.model_path(prefix, iterations, writes_binary(param))
        if not done.is_file():
            make_folder(folder)
            file = SolverFile(param, self.solver.name, self.solver.text, self.root)
            tune(file, weights, folder / "tune.log", self._heard, self._options, self.teacher)
        tuned = snapshot.read_model(done).layers
        return self.score(test or net, tuned), tuned


def taught_by(teacher: StrPath | None) -> dict[str, str]:
    """What tells a teacher from others, by its weights; empty for none. Raises ForceregError."""
    return (
        {}
        if teacher is None
        else {"teacher": str(snapshot.fingerprint(snapshot.read_model(os.fspath(teacher)).layers))}
    )


def check_taught(teacher: Any, finetune: int) -> None:
    """Raises UsageError for a teacher of nothing."""
    if teacher is not None and not finetune:
        raise UsageError("--teacher teaches the nets that --finetune N trains, which isn't given; add it")


def accuracy_among(net: Net, means: Score) -> float | None:
    """The accuracy among a net's scores, None without one.

    Of several Accuracy layers the last one with top_k 1 counts, behind which no auxiliary classifier comes.
    """
    seen = {output.name for output in means.outputs}
    layers = [spec for spec in net.spec.layers if spec.type == "Accuracy" and spec.tops[0] in seen]
    # stable: of equal ones the last in the file stays last
    layers.sort(key=lambda spec: spec.message.accuracy_param.top_k == 1)
    return means.mean(layers[-1].tops[0]) if layers else None
