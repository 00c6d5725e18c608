"""What decompose, ranks, sensitivity and frontier ask alike: a net, its layers and how each is decomposed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.options import (
    asked_devices,
    code_options,
    data_options,
    device_options,
    given_shapes,
    input_shape_option,
)
from forcereg.errors import ForceregError, UsageError, did_you_mean

if TYPE_CHECKING:
    from forcereg.cost import Cost, Shapes
    from forcereg.lowrank.config import RankConfig
    from forcereg.lowrank.decompose import Prepared, Selection
    from forcereg.lowrank.rewrite import Weights
    from forcereg.schema.text import NetFile, SolverFile
    from forcereg.snapshot import ModelFile
    from forcereg.study.accounting import Accounts
    from forcereg.study.evaluate import Evaluator
    from forcereg.study.moments import TrainingData

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
MIXED = "mixed"


@dataclass(frozen=True)
class Opened:
    """A net that waits for its ranks, and where it came from. `model`: the snapshot, its weights in the net's form.

    `accounts`: what costs are of. `scores`: the file that keeps scores of its decompositions.
    """

    model: ModelFile
    prepared: Prepared
    accounts: Accounts
    scores: Path | None = None

    @cached_property
    def whole(self) -> Cost:
        """Of the whole net as it is; MACs are None where shapes are unknown."""
        return self.accounts.cost(self.prepared.file, self.prepared.weights)

    @cached_property
    def in_training(self) -> Cost | None:
        """Of the TRAIN net, where that isn't what costs are of and differs from it."""
        found = self.accounts.in_training(self.prepared.file)
        return None if found == self.whole else found

    @property
    def unknown(self) -> str:
        """Why MACs are unknown; empty if they are known."""
        if self.whole.macs is not None:
            return ""
        allowed = self.accounts.allow_python_layers
        if not allowed and any(one.type == "Python" for one in self.prepared.file.message.layer):
            return "MACs are unknown: the net has Python layers, which run with --allow-python-layers only"
        return (
            "MACs are unknown: data that isn't here (give --input-shape BLOB=N,C,H,W), or layers of your own that need "
            "--import"
        )

    @property
    def costed(self) -> str:
        """What costs are of, where that isn't plain; empty where it is."""
        if self.accounts.phase == "TRAIN":
            return "the net has no TEST net that can be built: costs are those of its TRAIN net"
        if self.in_training is None:
            return ""
        macs, params = self.in_training.macs, self.in_training.params
        return f"costs are those of the TEST net; the TRAIN net has {macs:,} MACs and {params:,} learned values"


@dataclass(frozen=True)
class LayerOptions:
    """What the options of `layer_options` say."""

    model: str | None
    method: str
    fc: bool
    only_layers: str | None
    except_layers: str | None
    fold_bn: bool
    multiple: int
    data_aware: int | None
    seed: int
    solver: str | None
    gpu: str | None
    device: str | None
    data_budget: int
    workers: int
    allow_python_layers: bool
    input_shape: tuple[str, ...]

    @property
    def on(self) -> str | None:
        """The one device to run on, None for the solver's. Raises UsageError for several."""
        found = asked_devices(self.gpu, self.device)
        if len(found) > 1:
            raise UsageError(f"--gpu is '{self.gpu}'; this runs on one GPU")
        return found[0]

    def solver_file(self) -> SolverFile | None:
        """The file of --solver. Raises ForceregError."""
        from forcereg.schema.text import read_solver

        return None if self.solver is None else read_solver(self.solver)

    def selection(self, config: RankConfig | None = None) -> Selection:
        """Which layers to decompose and how. Raises UsageError for what doesn't go together."""
        from forcereg.lowrank.decompose import Selection
        from forcereg.registry import factorizer

        only, without = names("--only-layers", self.only_layers), names("--except-layers", self.except_layers) or ()
        if both := sorted({*(only or ())}.intersection(without)):
            raise UsageError(f"--only-layers and --except-layers both name '{both[0]}'")
        if self.method not in (known := sorted([MIXED, *factorizer])):
            hint = did_you_mean(self.method, known) or f"; known are {', '.join(known)}"
            raise UsageError(f"unknown decomposition method '{self.method}'{hint}")
        if self.method == MIXED and config is None:
            raise UsageError(
                "--method mixed takes each layer's method from decompose's --rank-config FILE.json; give that"
            )
        plain = Selection(
            self.method, {}, self.fc, only, without, seed=self.seed, fold_bn=self.fold_bn, multiple=self.multiple
        )
        if config is None:
            return plain
        for name in config.layers:
            if self.method == MIXED and name not in config.methods:
                raise UsageError(f"{config.name}: layer '{name}' has no method; --method mixed needs one (\"pca\")")
        for name in only or ():
            if name not in config.layers:
                raise UsageError(f"--only-layers names '{name}', for which {config.name} has no rank")
        return replace(plain, methods=config.methods, only=only or list(config.layers))

    def evaluator(self, scores: Path | None) -> Evaluator:
        """What scores nets on the test net of --solver. Raises UsageError without, ForceregError for a wrong one."""
        from forcereg.study.evaluate import Evaluator

        file = self.solver_file()
        if file is None:
            raise UsageError("--solver is missing: its test net scores the decomposed nets")
        return Evaluator(
            file,
            device=self.on,
            cache=scores,
            budget=self.data_budget << 20,
            workers=self.workers,
            allow_python_layers=self.allow_python_layers,
        )

    def open(self, snapshot: str | Path, config: RankConfig | None = None, scores: Path | None = None) -> Opened:
        """The net of a snapshot, ready to be decomposed; `scores` as in Opened. Raises ForceregError."""
        from forcereg.study.accounting import accounts

        selection, given, solver = self.selection(config), given_shapes(self.input_shape), self.solver_file()
        model = read_weights(snapshot)
        file, root = asked_net(self.model, model, given)
        model = in_form(model, file)
        tested = solver and next(iter(solver.message.test_state), None)
        found = accounts(file, given, model.input_shapes, root, self.allow_python_layers, tested)
        prepared = self._prepared(file, model.layers, found.shapes, replace(selection, state=found.state))
        return Opened(model, prepared, found, scores)

    def reopened(self, opened: Opened) -> Opened:
        """A net that others of these options opened, read once for all. Raises ForceregError."""
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told when it was opened
            file, _ = asked_net(self.model, opened.model)
        selection = replace(self.selection(), state=opened.accounts.state)
        return replace(opened, prepared=self._prepared(file, opened.model.layers, opened.accounts.shapes, selection))

    def _prepared(self, file: NetFile, weights: Weights, shapes: Shapes | None, selection: Selection) -> Prepared:
        from forcereg.lowrank.decompose import prepare

        if self.data_aware is None:
            return prepare(file, weights, shapes, selection)
        from forcereg.study.moments import prepare_aware

        return prepare_aware(file, weights, shapes, selection, self.training_data(self.data_aware))

    def training_data(self, batches: int, seed: int | None = None) -> TrainingData:
        """So many batches of --solver's data or the net's own. Raises ForceregError for a wrong solver."""
        from forcereg.study.moments import TrainingData

        options = (self.on, self.data_budget << 20, self.workers, self.allow_python_layers)
        return TrainingData(batches, self.solver_file(), *options, seed=seed)


def gathered(into: str, kind: type, options: Sequence[Decorator]) -> Decorator:
    """A decorator that gives a command `options` as one argument: a `kind`, a dataclass with a field for each."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            own = {one.name: values.pop(one.name) for one in fields(kind)}
            return function(**{into: kind(**own)}, **values)

        wrapped: Callable[..., Any] = call
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


CHOICE: list[Decorator] = [
    click.option("--method", default="pca", show_default=True, metavar="pca|svd|kmeans|vh|tucker2|cp|mixed",
                 help="How to decompose; mixed: as --rank-config says for each layer."),
    click.option("--fc", is_flag=True, help="InnerProduct layers too, not convolutions only."),
    click.option("--only-layers", metavar="A,B", help="Decompose these layers only."),
    click.option("--except-layers", metavar="A,B", help="Leave these layers as they are."),
    click.option("--multiple", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Ranks (of each group) that are multiples of N, or full: rounded up, within budgets."),
]  # fmt: skip
"""Which layers, and how."""


def choice_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--method, --fc, --only-layers, --except-layers and --multiple as arguments of their own."""
    return functools.reduce(lambda made, option: option(made), reversed(CHOICE), function)


layer_options = gathered("layers", LayerOptions, [
    click.option("--model", metavar="FILE", type=click.Path(),
                 help="Net prototxt.  [default: the net that the snapshot holds]"),
    *CHOICE,
    click.option("--fold-bn", is_flag=True, help="Fold BatchNorm and Scale into the layers before them first."),
    click.option("--data-aware", type=click.IntRange(min=1), metavar="N",
                 help="Minimise the error of the layers' responses on N training batches (pca and svd)."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                 help="Of kmeans and --recalibrate."),
    click.option("--solver", metavar="FILE", type=click.Path(), help="Solver prototxt, for what needs data."),
    device_options,
    data_options,
    code_options,
    input_shape_option,
])  # fmt: skip


def names(option: str, text: str | None) -> list[str] | None:
    """Layer names with commas; None if the option isn't given. Raises UsageError for none."""
    if text is None:
        return None
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise UsageError(f"{option} names no layer; expected names with commas, as in conv1,conv2")
    return found


def fractions(option: str, text: str, what: str, example: str) -> list[float]:
    """Numbers with commas. Raises UsageError, which calls them `what`, unless all are from 0 to 1."""
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= one <= 1 for one in found):
        raise UsageError(f"{option} is '{text}'; expected {what} from 0 to 1 with commas, as in {example}")
    return found


def read_weights(snapshot: str | Path) -> ModelFile:
    """The model file, also through a solver state's learned_net. Raises ForceregError."""
    from forcereg.snapshot import ModelFile, model_of, read
    from forcereg.system.paths import find_root, learned_nets

    found = read(snapshot)
    if isinstance(found, ModelFile):
        return found
    root = find_root(found.learned_net, str(snapshot))
    return model_of(found, learned_nets(root, found.learned_net, str(snapshot)))


def asked_net(
    model: str | None, weights: ModelFile, given: Mapping[str, Sequence[int]] | None = None
) -> tuple[NetFile, Path]:
    """The net of --model or of the snapshot, and the root of its relative paths. Raises ForceregError.

    `given`: shapes of inputs.
    """
    import warnings

    from forcereg.net.load import net_root
    from forcereg.schema.text import parse_net, read_net

    text = weights.attrs.get("forcereg_net")
    if model is None and text is None:
        raise ForceregError(f"{weights.path}: holds no net text (Caffe wrote it?); give it by --model net.prototxt")
    file = read_net(model) if model is not None else parse_net(str(text), f"<net in {weights.path}>")
    for line in file.warnings:
        warnings.warn(line, stacklevel=2)
    compare(weights, file)
    root = net_root(file)
    if model is not None:
        check_fit(weights, file, root, {**(weights.input_shapes or {}), **(given or {})})
    return file, root


LEARNED = frozenset({"BatchNorm", "Convolution", "Deconvolution", "Embed", "InnerProduct", "LSTM", "PReLU", "RNN"})
"""Types of layers that never are without weights."""


def compare(weights: ModelFile, file: NetFile) -> None:
    """Warns of layers that the snapshot or the net alone has weights for. Raises ForceregError if it is all of them."""
    import warnings

    from forcereg.snapshot import LoadReport, remark

    if not any(weights.layers.values()):
        return  # which no command can use, and every one tells
    layers = {layer.name: layer for layer in file.message.layer}
    fresh = [
        name
        for name, layer in layers.items()
        # a blob with a name may be another layer's
        if layer.type in LEARNED and not weights.layers.get(name) and not any(spec.name for spec in layer.param)
    ]
    loaded = [name for name, blobs in weights.layers.items() if blobs and name in layers]
    ignored = [name for name in weights.layers if name not in layers]
    if text := remark([(weights, LoadReport(tuple(loaded), tuple(ignored), tuple(fresh)))]):
        warnings.warn(text, stacklevel=2)


def check_fit(weights: ModelFile, file: NetFile, root: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises ForceregError for blobs of another number or shape than the net's, as far as its shapes can be known.

    `shapes`: of its inputs.
    """
    from forcereg.net.load import meta_nets
    from forcereg.snapshot import matched, suited

    for net in meta_nets(file, shapes, root):
        matched(net.params, suited(weights, net), net.shared)


def opened_model(snapshot: str, model: str | None) -> tuple[ModelFile, NetFile]:
    """A snapshot's weights in the form of its net, and the net. Raises ForceregError."""
    weights = read_weights(snapshot)
    file, _ = asked_net(model, weights)
    return in_form(weights, file), file


def in_form(weights: ModelFile, file: NetFile) -> ModelFile:
    """A snapshot's weights in the form of their net; warns of what has changed."""
    import warnings

    from forcereg.snapshot import modern, suited_to

    found = suited_to(weights, file.message.layer)
    for text in found.remarks:
        warnings.warn(f"{weights.path}: {text}", stacklevel=2)
    return modern(found, {layer.name: layer.type for layer in file.message.layer})


def nothing(snapshot: str | Path, file: NetFile, skipped: Mapping[str, str], hint: str = "") -> ForceregError:
    """The error for a net of which no layer is decomposed; `hint`: how they would be."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no convolution"
    return ForceregError(f"{snapshot}: nothing to decompose in {file.name} ({reasons}){hint and f'; {hint}'}")
