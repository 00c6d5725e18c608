"""Curves of a run, read from its log: glog lines of Caffe, NVIDIA's Caffe or ours, or our JSON events."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.report.glog import is_wrapped, prefix_of, read_glog, unwrapped
from forcereg.report.lines import lines
from forcereg.report.points import MANY, Outputs, Point, Run


def read_run(path: str | Path, name: str | None = None, silent: bool = False) -> Run:
    """The curves of a log file, glog lines or JSON lines by its content, also compressed by gzip.

    Raises ForceregError if it can't be read, or holds no curve or more than `MOST`; with `silent` events of a run that
    told none are a Run without.
    """
    path = Path(path)
    run, blobs = Run(name or path.stem), dict[str, int]()
    source = lines(path)
    first = next((line for line in source if line.strip()), "")
    # looked at to tell the kinds apart, it is a line like the others
    source = itertools.chain([first], source)
    if not first.lstrip().startswith("{"):
        read_glog(source, run, blobs, path)
    elif is_wrapped(first):
        read_glog(unwrapped(source), run, blobs, path)
    else:
        for point in _json_points(source, str(path), blobs, run):
            run.take(point, path)
    _name_elements(run, blobs)
    events = first.lstrip().startswith("{") and not is_wrapped(first)
    if not run.curves and not (silent and events):
        raise ForceregError(f"{path}: holds no line like 'Iteration 100, loss = 0.5'; expected a training log")
    return run


def _name_elements(run: Run, blobs: dict[str, int]) -> None:
    """The first of several elements gets its number; those of blobs with too many (name -> how many) go."""
    several = {name for name in run.curves if f"{name}[1]" in run.curves}
    run.curves = {f"{name}[0]" if name in several else name: curve for name, curve in run.curves.items()}
    for name, count in blobs.items():
        for number in range(MANY):
            # curves from when there were few enough
            run.curves.pop(f"{name}[{number}]", None)
        run.remarks.append(f"{run.name}: '{name}' has {count:,} elements; drawn are their mean, least and most")


def _json_points(source: Iterable[str], path: str, blobs: dict[str, int], run: Run) -> Iterator[Point]:
    bad = 0
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        if bad:  # the last line may be the one that a run was writing when it ended, but this one isn't that
            raise ForceregError(f"{path}:{bad}: is no JSON object; expected what --log-json writes")
        try:
            event = json.loads(line)
        # RecursionError: brackets within brackets, thousands deep
        except (ValueError, RecursionError):
            bad = number
            continue
        try:
            # a list: of a damaged event nothing is drawn, not what came before the damage
            yield from list(_event_points(event, blobs))
            if event.get("event") == "best":
                run.judged(event["output"], float(event["value"]), int(event["iteration"]), event["model"])
            if event.get("event") == "enough":
                run.stopped(int(event["iteration"]), event["text"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise ForceregError(f"{path}:{number}: is no event; expected what --log-json writes") from None


def _event_points(event: dict[str, Any], blobs: dict[str, int]) -> Iterator[Point]:
    kind, iteration = event.get("event"), int(event.get("iteration", 0))
    if kind in ("train", "final"):
        yield "train loss", iteration, float(event["loss"])
    if kind == "rate":
        yield "lr", iteration, float(event["rate"])
    if kind in ("train", "test"):
        part = "train output " if kind == "train" else prefix_of(int(event["net"]))
        outputs = Outputs(blobs)
        for output in event["outputs"]:
            outputs.add(part + output["name"], float(output["value"]))
        yield from outputs.end(iteration)
    if kind == "sparsity":
        for layer in event["layers"]:
            # biases' few zeros would hide the weights'
            if int(layer["index"]) == 0:
                shares = {name: layer[name] for name in ("element", "column", "row")}
                shares |= {f"block ({one['x']},{one['y']})": one["percent"] for one in layer["blocks"]}
                for name, share in shares.items():
                    yield f"{layer['layer']} {name} sparsity", iteration, float(share)
    if kind == "ranks":
        for layer in event["layers"]:
            yield f"{layer['layer']} rank", iteration, float(layer["rank"])
    if kind == "force":
        for layer in event["layers"]:
            for name in layer:
                if name != "layer":
                    yield f"{layer['layer']} {name}", iteration, float(layer[name])
