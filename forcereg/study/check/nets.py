"""Every layer of a net, and the first records of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import chain
from math import prod
from pathlib import Path

import torch

import forcereg.registry as registry
from forcereg.data.feed import Feed, FeedContext
from forcereg.data.memory_data import MemoryFeed
from forcereg.data.sources import open_source
from forcereg.errors import ForceregError
from forcereg.layers import make_layer
from forcereg.layers.module import layer_class
from forcereg.net.explain import misfit
from forcereg.net.load import net_root
from forcereg.net.module import Net
from forcereg.net.sharing import Owners
from forcereg.net.summary import summarize
from forcereg.schema import TEST, TRAIN
from forcereg.schema.rules import Title, net_state
from forcereg.schema.scan import shown
from forcereg.schema.spec import LayerSpec, kept_layers, problems, rule_problems
from forcereg.schema.text import NetFile
from forcereg.solver.setup import NetChoice
from forcereg.study.check.report import Options, Report

Shape = tuple[int, ...]
Seen = list[tuple[tuple[Shape, ...], str]]
"""Of each batch the shapes of its tops and, if they aren't those that the feed says, its record's name."""


def check_both_phases(file: NetFile, options: Options, report: Report) -> None:
    root = net_root(file)
    for phase in (TRAIN, TEST):
        state = net_state(phase, file.message.state, net_state(phase))
        state.stage.extend(options.stages)
        state.level = options.level if options.level is not None else state.level
        net = check_net(NetChoice(file, state, Title(several=True)), root, options, report)
        if net is not None:
            name = ("TRAIN", "TEST")[phase]
            report.facts[f"{name} net"] = net_facts(net)
            with report.about(net.spec.title):
                check_data(net, options, report)
            net.close()


def check_net(choice: NetChoice, root: Path, options: Options, report: Report) -> Net | None:
    """The net on the meta device, its data layers open; None if it can't be built, with every reason reported."""
    with report.about(choice.title.short(choice.state)):
        return _check_net(choice, root, options, report)


def _check_net(choice: NetChoice, root: Path, options: Options, report: Report) -> Net | None:
    before = report.troubles
    for text in choice.file.warnings:
        report.warn(text)
    layers = kept_layers(choice.file, choice.state, root)
    own = (choice.file, choice.state, choice.title)
    broken = broken_layers(choice.file)
    for problem in (*rule_problems(*own), *problems(layers, *own)):
        if not str(problem).startswith(tuple(f"{where}: " for where in broken)):  # it lacks what was told
            report.error(problem)
    # no budget: the first records are read, not the whole set decoded
    context = FeedContext(root=root, device=torch.device("cpu"), seed=0, budget=0)
    with torch.device("meta"):
        feeds = _check_layers(layers, broken, context, options, report)
    if report.troubles > before:
        _check_feeds(feeds, options, report)
        return None
    for feed in feeds.values():
        feed.close()
    with torch.device("meta"):
        spec = report.attempt(lambda: choice.spec(root))
        if spec is None:
            return None
        for text in spec.warnings:
            report.warn(text)
        allow = options.allow_python_layers
        return report.attempt(lambda: Net(spec, context, options.input_shapes, allow_python_layers=allow))


def broken_layers(file: NetFile) -> frozenset[str]:
    """`where` of the layers that couldn't be read whole."""
    return frozenset(file.where(i) for i, line in enumerate(file.lines) if line in file.broken)


def _check_layers(
    layers: Sequence[LayerSpec], broken: Set[str], context: FeedContext, options: Options, report: Report
) -> dict[str, Feed]:
    """Builds every layer whose bottoms' shapes are known; what lies behind a broken one can't be judged.

    `broken`: places of layers that have been told of and can't be built.

    The sources that could be opened, by layer name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    feeds: dict[str, Feed] = {}
    owners = Owners()
    skipped, absent = [], False
    for spec in layers:
        if spec.where in broken:
            # told when the file was read, but no net can be built with it
            report.troubles += 1
            if spec.type and spec.type not in registry.source:
                # whether there is such a type is known without its fields
                report.attempt(lambda: layer_class(spec), spec.where)  # noqa: B023
        elif spec.tops and all(top in options.input_shapes for top in spec.tops) and not spec.bottoms:
            shapes.update({top: tuple(options.input_shapes[top]) for top in spec.tops})
        elif spec.type in registry.source:
            feed = report.attempt(lambda: open_source(spec, context), spec.where)  # noqa: B023
            if feed is None:
                absent = True
                continue
            feeds[spec.name] = feed
            shapes.update(zip(spec.tops, feed.shapes, strict=True))
        elif all(bottom in shapes for bottom in spec.bottoms):
            bottoms = [shapes[bottom] for bottom in spec.bottoms]
            allow = options.allow_python_layers
            module = report.attempt(lambda: make_layer(spec, bottoms, allow), spec.where)  # noqa: B023
            if module is not None:
                report.attempt(lambda: owners.add(spec, module), spec.where)  # noqa: B023
                made = dict(zip(spec.tops, module.out_shapes, strict=True))
                # a name that is written twice has been reported: it stays what it was
                shapes.update({top: shape for top, shape in made.items() if top in spec.bottoms or top not in shapes})
        else:
            skipped.append(shown(spec.name))
            report.attempt(lambda: layer_class(spec), spec.where)  # noqa: B023
    if skipped:
        named = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        phase = ("TRAIN", "TEST")[layers[0].phase]
        lie = f"1 layer ({named}) lies" if len(skipped) == 1 else f"{len(skipped)} layers ({named}) lie"
        hint = "; --input-shape BLOB=N,C,H,W stands in for data that isn't here" if absent else ""
        report.warn(f"{phase} net: {lie} behind the problems below and can't be checked yet{hint}")
    return feeds


def check_data(net: Net, options: Options, report: Report) -> None:
    """Reads the first records of every data layer as training would, labels against the losses included."""
    phase, seen = ("TRAIN", "TEST")[net.spec.phase], dict[str, Seen]()
    read_of = _check_feeds(net.feeds, options, report, seen)
    _check_sizes(net, seen, options, report)
    for name, read in read_of.items():
        report.facts[f"{phase} data '{shown(name)}'"] = f"{read} read, all fine"


def _check_sizes(net: Net, seen: Mapping[str, Seen], options: Options, report: Report) -> None:
    """Builds the net for the smallest and the largest images among those of other sizes than it was made for."""
    found: dict[tuple[tuple[str, Shape], ...], str] = {}
    for batches in zip(*seen.values(), strict=False):
        tops = [zip(net.feeds[name].tops, shapes, strict=True) for name, (shapes, _) in zip(seen, batches, strict=True)]
        shapes = tuple(chain.from_iterable(tops))
        if any(shape != net.shapes[top] for top, shape in shapes):
            found.setdefault(shapes, ", ".join(record for _, record in batches if record))
    ordered = sorted(found, key=lambda shapes: sum(prod(shape) for _, shape in shapes))
    for shapes in dict.fromkeys(ordered[:1] + ordered[-1:]):
        report.attempt(lambda: _build_for(net, dict(shapes), found[shapes], options))  # noqa: B023


def _build_for(net: Net, shapes: Mapping[str, Shape], records: str, options: Options) -> None:
    """Raises ForceregError, naming the records, if the net can't be had for inputs of these shapes."""
    try:
        with torch.device("meta"):
            given = {**options.input_shapes, **shapes}
            other = Net(net.spec, None, given, allow_python_layers=options.allow_python_layers)
        for (spec, module), (_, fresh) in zip(net.built, other.built, strict=True):
            bottom = other.shapes[spec.bottoms[0]] if spec.bottoms else ()
            if module is not None and fresh is not None and (error := misfit(spec, module, fresh, bottom)):
                raise error
    except ForceregError as error:
        sizes = ", ".join(f"'{name}' {list(shape)}" for name, shape in shapes.items() if len(shape) > 1)
        raise ForceregError(f"{error}; so it is with {sizes} ({records})") from error


def _check_feeds(
    feeds: Mapping[str, Feed], options: Options, report: Report, seen: dict[str, Seen] | None = None
) -> dict[str, str]:
    """What was read of each source, those without a problem only; closes them. `seen` gets their batches."""
    read = {}
    for name, feed in feeds.items():
        # a program gives its records
        if isinstance(feed, MemoryFeed):
            continue
        batches = -(-options.records // batch_size(feed))
        found: Seen = []
        if report.attempt(lambda: _read(name, feed, batches, options.records, found)):  # noqa: B023  (called at once)
            if seen is not None:
                seen[name] = found
            read[name] = _records(feed, batches * batch_size(feed))
        feed.close()
    return read


def _records(feed: Feed, seen: int) -> str:
    records = feed.size(seen)
    if records is not None and records <= seen:
        return f"all {records:,} records" if records > 1 else "the only record"
    return f"the first {seen:,} records"


def check_fed(net: Net, report: Report) -> None:
    """A net that waits for a program's data is fine, but not for `forcereg train`."""
    calls = {"Input": "solver.step(n, inputs=...)", "MemoryData": "net.set_input_arrays(data, labels)"}
    for spec in net.spec.layers:
        if spec.type in calls:
            given = f"gets its data from a program, by {calls[spec.type]}"
            report.warn(f"{spec.where}: {given}; `forcereg train` alone has none for it")


def batch_size(feed: Feed) -> int:
    """Records that one batch takes."""
    return max(1, feed.shapes[0][0]) if feed.shapes and feed.shapes[0] else 1


def _read(name: str, feed: Feed, batches: int, records: int, seen: Seen) -> bool:
    """Adds the batches to `seen`. Raises ForceregError for what training would stop at, nan and inf among it."""
    for index in range(batches):
        batch = feed.next()
        shapes = tuple(tuple(values.shape) for values in batch)
        seen.append((shapes, "" if shapes == feed.shapes else feed.named()))
        for top, values in zip(feed.tops, batch, strict=True):
            if not values.isfinite().all():
                where = f"layer '{shown(name)}': batch {index} of blob '{shown(top)}': nan or inf"
                raise _not_finite(feed.find_nonfinite(max(records, 1)) or where)
    if found := feed.find_nonfinite(records):  # the batches may have held others, by shuffling or cropping
        raise _not_finite(found)
    return batches > 0


def _not_finite(where: str) -> ForceregError:
    return ForceregError(f"{where}; expected finite values, any other spoils the loss; correct it or leave it out")


def net_facts(net: Net) -> str:
    summary = summarize(net)
    cost = f"{summary.params:,} parameters, {summary.macs:,} MACs an item"
    return f"{len(summary.rows)} layers, {cost}, batch {summary.batch}"
