"""Finding a teacher: a snapshot's net as far as the scores that a solver's net learns, fed with the same batches.

What is learned from it is in forcereg.solver.distill.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from forcereg import snapshot
from forcereg.errors import ForceregError, did_you_mean, printable
from forcereg.layers.loss import SoftmaxWithLoss
from forcereg.net.module import Net
from forcereg.net.read import ReadNet, read_net_of
from forcereg.schema import TEST
from forcereg.schema.rules import net_state
from forcereg.schema.spec import LayerSpec, NetSpec, build_spec
from forcereg.solver.distill import Head, Lesson
from forcereg.solver.loop import Solver
from forcereg.system.paths import StrPath


def learn_from(
    solver: Solver,
    teacher: StrPath | Any,
    model: StrPath | None = None,
    temperature: float = 4.0,
    share: float = 0.5,
    allow_python_layers: bool = False,
) -> None:
    """Has a solver's net learn from a teacher as well, from its next iteration on.

    `teacher`: a snapshot that holds its net, or a net in memory; `model`: the prototxt of its net. `temperature` > 0
    softens both, `share`, above 0, at most 1, is what the teacher counts. Tells which losses it adds to.
    Raises ForceregError for a net without SoftmaxWithLoss, and for a teacher that lacks weights, the net's scores or
    inputs, or has other classes.
    """
    read = read_net_of(teacher, model, warn=solver.warn, said=("teacher", "--teacher-model"))
    state = net_state(TEST, read.file.message.state, net_state(TEST), *solver.param.test_state[:1])
    whole = build_spec(read.file, state, read.root)
    heads, left = heads_of(solver.net, whole)
    taught = leading_to(whole, {one.goals for one in heads})
    net = _teacher_net(read, taught, solver, allow_python_layers)
    for one in heads:
        _check_classes(solver.net, net, one)
    path = printable(str(read.model.path))
    told = {"file": path, "weights": snapshot.fingerprint(read.model.layers)}
    lesson = Lesson(solver.net, solver.passes.precision, net, heads, temperature, share, told)
    solver.passes.learn(lesson)
    solver.steps.forget()
    counts = ", ".join(f"{name} counts {weight:g}" for name, weight in lesson.loss_weights.items())
    alone = f"; it has no scores for {', '.join(left)}" if left else ""
    solver.emit("note", text=f"Taught by {path} at temperature {temperature:g}: {counts}{alone}")


def heads_of(net: Net, teacher: NetSpec) -> tuple[list[Head], list[str]]:
    """The losses of `net` whose scores the teacher has, too, and the losses left. Raises ForceregError if none has."""
    theirs, heads, left = {top for spec in teacher.layers for top in spec.tops}, list[Head](), dict[str, str]()
    for spec, module in net.built:
        if not isinstance(module, SoftmaxWithLoss) or not spec.loss_weights[0]:
            continue
        scores, labels = spec.bottoms
        _, goals = _maker(net.spec, scores)
        if goals in theirs:
            heads.append(Head(module, scores, labels, spec.tops[0], spec.loss_weights[0], goals))
        else:
            left[spec.tops[0]] = goals
    if not heads and not left:
        raise ForceregError(
            f"{net.spec.filename}: has no SoftmaxWithLoss that counts, to whose scores a teacher could add; leave the "
            "teacher out"
        )
    if not heads:
        missing = next(iter(left.values()))
        raise ForceregError(
            f"{teacher.filename}: has no blob '{missing}', whose scores {net.spec.filename} learns"
            f"{did_you_mean(missing, theirs)}; give a teacher in whose net they are called so"
        )
    return heads, list(left)


def leading_to(spec: NetSpec, blobs: Collection[str]) -> NetSpec:
    """Of a net the layers that `blobs`, its outputs then, depend on."""
    wanted, kept = set(blobs), list[LayerSpec]()
    for layer in reversed(spec.layers):
        if wanted.intersection(layer.tops):
            kept.append(layer)
            wanted.update(layer.bottoms)
    return replace(spec, layers=tuple(reversed(kept)), outputs=tuple(sorted(blobs)))


def _teacher_net(read: ReadNet, spec: NetSpec, solver: Solver, allow_python_layers: bool) -> Net:
    """The teacher as far as `spec`, fed with what the solver's net is fed with. Raises ForceregError."""
    fed = solver.net.inputs
    makers = {top: layer for layer in spec.layers if not layer.bottoms for top in layer.tops}
    for blob, maker in makers.items():
        if blob not in fed:
            raise maker.fail(f"the teacher needs blob '{blob}', {solver.net.spec.filename} is fed {', '.join(fed)}")
    shapes = {blob: solver.net.shapes[blob] for blob in makers}
    generator = torch.Generator().manual_seed(0)  # of values that the weights replace: the run's own stays as it is
    net = Net(spec, None, shapes, generator, allow_python_layers)
    report = snapshot.load_into(net.params, snapshot.suited(read.model, net), net.shared)
    if report.fresh:
        lacking = ", ".join(report.fresh)
        raise ForceregError(
            f"{read.model.path}: lacks the weights of the teacher's {lacking}; give the model of its net"
        )
    for layer, module in net.built:
        if module is not None and module.carried():
            raise layer.fail(
                "carries a state from batch to batch, which snapshots of its pupil lack; use another teacher"
            )
    return net.place(solver.device)


def _check_classes(net: Net, teacher: Net, head: Head) -> None:
    """Raises ForceregError unless the teacher gives scores of the net's shape, whatever the batch."""
    (ours, _), (theirs, _) = _maker(net.spec, head.scores), _maker(teacher.spec, head.goals)
    own, other = net.shapes[head.scores], teacher.shapes[head.goals]
    if theirs.type == "Softmax":
        raise theirs.fail(f"gives probabilities in '{head.goals}', a teacher needs scores; give its training net")
    if own[1:] != other[1:]:
        raise theirs.fail(
            f"the teacher's '{head.goals}' has shape {list(other)}, that of {ours.where} {list(own)}; give one of the "
            "same classes"
        )


def _maker(spec: NetSpec, blob: str) -> tuple[LayerSpec, str]:
    """The layer that gives a blob, and its name in the file, in front of Splits."""
    makers = {top: layer for layer in spec.layers for top in layer.tops}
    while makers[blob].type == "Split":
        blob = makers[blob].bottoms[0]
    return makers[blob], blob
