"""Scoring nets that share a solver's test data, and fine-tuning them: nothing is computed twice."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forcereg import snapshot
from forcereg.data.feed import DEFAULT_BUDGET, Feed, FeedContext
from forcereg.errors import ForceregError, storable
from forcereg.lowrank.decompose import Prepared
from forcereg.lowrank.fold import fold_bn
from forcereg.lowrank.ranks import Choice, Whole
from forcereg.lowrank.rewrite import Weights
from forcereg.net.load import net_file
from forcereg.net.module import Net
from forcereg.net.scoring import Score, check_blobs, score, unfed
from forcereg.schema import TEST, SolverParameter
from forcereg.schema.rules import Title, net_state
from forcereg.schema.spec import NetSpec, build_spec
from forcereg.schema.text import NetFile, SolverFile, net_from_message, parse_net, to_text
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.prefix import writes_binary
from forcereg.solver.resume import resume_latest
from forcereg.solver.setup import TRAIN_FIELDS, problems, solver_root, tested_nets, trained_net
from forcereg.solver.signals import handled
from forcereg.solver.state import pack
from forcereg.system import sidefiles
from forcereg.system.device import choose_device, prepare
from forcereg.system.events import Event
from forcereg.system.files import append_text, refused, write_text
from forcereg.system.paths import resolve

SOURCES = ("data_param", "image_data_param", "hdf5_data_param", "window_data_param")
DATABASE = (".mdb", ".ldb", ".sst")  # the files of a database folder that hold its records


@dataclass(frozen=True)
class Evaluation:
    """A net's scores on the test data: accuracy (None for a net without one) and total loss."""

    accuracy: float | None
    loss: float

    def check(self) -> None:
        """Raises ValueError for an accuracy that no net has."""
        check_share(self.accuracy)


def check_share(accuracy: float | None) -> None:
    """Raises ValueError for an accuracy below 0 or above 1."""
    if accuracy is not None and (accuracy < 0 or accuracy > 1):
        raise ValueError(f"an accuracy of {accuracy:g}")


class Cache:
    """Evaluations by key, in a JSON file that several processes may share; None: in memory only.

    What isn't of that form there counts for nothing, and is gone when something is put.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known = self._read()

    def get(self, key: str) -> Evaluation | None:
        """What was put under the key."""
        return self._known.get(key)

    def put(self, key: str, value: Evaluation) -> None:
        """Keep a value. Raises ForceregError if the file can't be written."""
        self._known = {**self._read(), **self._known, key: value}
        if self.path is not None:
            plain = {key: asdict(value) for key, value in self._known.items()}
            write_text(self.path, json.dumps(plain, indent=1) + "\n")

    def _read(self) -> dict[str, Evaluation]:
        found = sidefiles.known(self.path, dict[str, Any]) or {}
        return {key: value for key, one in found.items() if (value := _evaluation(one)) is not None}


def _evaluation(value: Any) -> Evaluation | None:
    try:
        made: Evaluation = sidefiles.of_form(value, Evaluation)
    except ValueError:
        return None
    return made


class Evaluator:
    """Scores nets on the first test net of a solver, all on the same records, and fine-tunes them.

    The nets given are as snapshots of training keep them, with a test phase: its rules are matched against the
    solver's test state, its paths start where the solver's do. `cache`: a JSON file of what was scored before, by
    content; nets with Python layers aren't kept there, since their code may change. `device`, `budget`, `workers` and
    `allow_python_layers` as `Solver`'s; `tell` gets each warning once. `runs`: how many scores weren't known before.
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
        tell: Callable[[str], None] = warnings.warn,
    ) -> None:
        for problem in problems(solver.message, solver.name):
            raise problem
        self.solver, self.root, self.runs = solver, solver_root(solver), 0
        train = trained_net(solver, self.root)
        tests = tested_nets(solver, self.root, train.file)
        if not tests:
            raise ForceregError(f"{solver.name}: has no test net to score with; set test_iter and test_interval")
        self.test_file = None if tests[0].file is train.file else tests[0].file
        """The test net, where it is another file than the one that is trained."""
        self._told, self._tell = set[str](), tell
        self.device = choose_device(device, solver.message, self._warn)
        seed = solver.message.random_seed
        self.seed = int(seed) if seed >= 0 else 1
        self._allow = allow_python_layers
        self._options: dict[str, Any] = {"device": device, "budget": budget, "workers": workers}
        self._options["allow_python_layers"] = allow_python_layers
        self._context = FeedContext(self.root, self.device, self.seed, budget, workers)
        self._cache = Cache(None if allow_python_layers else cache)
        self._feeds: Sequence[Feed] = ()  # of the last net: while they live the next one shares the decoded set

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)

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
        title = Title(solver=True, number=0)
        return build_spec(file, net_state(TEST, file.message.state, *states), self.root, title)

    def _scored(self, spec: NetSpec, weights: Weights) -> Evaluation:
        for text in spec.warnings:
            self._warn(text)
        prepare(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        net = Net(spec, self._context, None, generator, self._allow).place(self.device)
        if missing := unfed(net):
            raise ForceregError(
                f"{spec.filename}: its test phase reads no data (input {', '.join(missing)}; a deploy net?); "
                "give the net that was trained, with its data layers"
            )
        known = {layer.name for layer in parse_net(spec.text, spec.filename).message.layer}
        if lost := [name for name in load(net, weights).ignored if weights[name] and name not in known]:
            self._warn(f"{spec.filename}: has no layer for the weights of {', '.join(lost)}")
        check_blobs(net, self.device)
        means = score(net, self.solver.message.test_iter[0])
        for feed in self._feeds:
            feed.close()
        self._feeds = list(net.feeds.values())
        return Evaluation(accuracy_among(net, means), means.loss)

    def key(self, spec: NetSpec, made_of: str) -> str:
        """Names what a score depends on: the test net, the files it reads, test_iter, seed, and the weights."""
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
        if prepared.folded:
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
        param = self._tuning(net_file(net), test and net_file(test), iterations)
        prefix = folder.resolve() / f"tuned_{digest([to_text(param), made_of or digest(None, weights)])[:12]}"
        param.snapshot_prefix = storable(prefix)
        done = snapshot.model_path(prefix, iterations, writes_binary(param))
        if not done.is_file():
            make_folder(folder)
            self._train(SolverFile(param, self.solver.name, self.solver.text, self.root), weights, folder)
        tuned = snapshot.read_model(done).layers
        return self.score(test or net, tuned), tuned

    def _tuning(self, net: NetFile, test: NetFile | None, iterations: int) -> Any:
        """The solver that fine-tunes: with the first test net only."""
        param = SolverParameter()
        param.CopyFrom(self.solver.message)
        for name in (*TRAIN_FIELDS, "test_net", "test_net_param", "weights", "snapshot_prefix"):
            param.ClearField(name)
        param.net_param.CopyFrom(net.message)
        if test is not None:
            param.test_net_param.append(test.message)
        del param.test_iter[1:], param.test_state[1:]
        param.force_decay, param.lr_policy, param.base_lr, param.max_iter = 0, "fixed", param.base_lr / 10, iterations
        param.random_seed, param.snapshot_after_train = self.seed, True
        return param

    def _train(self, file: SolverFile, weights: Weights, folder: Path) -> None:
        with append_text(folder / "tune.log") as stream:
            solver = Solver(file, observers=[GlogWriter(stream), self._heard], keep=1, **self._options)
            for one in (solver.net, *solver.test_nets):
                load(one, weights)
            train(solver)

    def _heard(self, event: Event) -> None:
        if event.kind == "warning":
            self._warn(event.text)


def train(solver: Solver) -> None:
    """To max_iter, from the newest snapshot if there is one, with Caffe's signals.

    Raises ForceregError as `Solver.solve`; KeyboardInterrupt if told to stop, once saved.
    """
    resume_latest(solver)
    with handled(solver):
        solver.solve()
    if solver.stop_requested:
        raise KeyboardInterrupt


def weights_of(solver: Solver) -> Weights:
    """All blobs of the first test net, those that it shares with the trained net among them."""
    return pack(solver.test_nets[0])


def load(net: Net, weights: Weights) -> snapshot.LoadReport:
    """Copies the weights by layer name. Raises ForceregError for a layer that they lack, or whose shapes differ."""
    layers = {name: dict(blobs) for name, blobs in weights.items()}
    report = snapshot.load_into(net.params, snapshot.ModelFile(Path("<weights>"), layers, {}), net.shared)
    if report.fresh:
        names = ", ".join(report.fresh)
        raise ForceregError(f"{net.spec.filename}: the weights lack layers {names}; give the model of this net")
    return report


def accuracy_among(net: Net, means: Score) -> float | None:
    """The accuracy among a net's scores, None without one.

    Of several Accuracy layers the last one with top_k 1 counts, behind which no auxiliary classifier comes.
    """
    seen = {output.name for output in means.outputs}
    layers = [spec for spec in net.spec.layers if spec.type == "Accuracy" and spec.tops[0] in seen]
    layers.sort(key=lambda spec: spec.message.accuracy_param.top_k == 1)
    return means.mean(layers[-1].tops[0]) if layers else None


# -- what a score depends on


def origin(prepared: Prepared, choices: Mapping[str, Choice]) -> str:
    """What a decomposition was made of, as a key: the last bits of its weights differ with the number of threads."""
    ranks = []
    for one in prepared.candidates:
        choice = choices.get(one.name, Whole(""))
        if not isinstance(choice, Whole):
            ranks.append([one.name, one.method, choice, f"{one.error(choice):.8f}"])  # the error tells seed and moments
    return digest(ranks, prepared.weights)


def digest(what: Any, weights: Weights | None = None) -> str:
    """A name for plain data and weights, equal for equal content."""
    found = hashlib.sha256(json.dumps(what).encode())
    for layer, blobs in sorted((weights or {}).items()):
        for index, values in sorted(blobs.items()):
            found.update(f"{layer}/{index} {values.shape}".encode())
            found.update(np.ascontiguousarray(values, np.float32).data)
    return found.hexdigest()


def data_files(spec: NetSpec) -> Iterable[Path]:
    """The files and folders that a net's data layers name."""
    for layer in spec.layers:
        names = [getattr(layer.message, field).source for field in SOURCES if layer.message.HasField(field)]
        names.append(layer.message.transform_param.mean_file)
        yield from (resolve(spec.root, name) for name in names if name)


def stamp(path: Path) -> list[Any]:
    """Changes when the file, or a database's folder, is written again."""
    files: Sequence[Path] = [path]
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in DATABASE and one.name != "lock.mdb")
    stats = [os.stat(one) for one in files if one.exists()]
    return [str(path), [(one.st_size, one.st_mtime_ns) for one in stats]]


def make_folder(path: Path) -> None:
    """With its parents. Raises ForceregError if the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error) from error
