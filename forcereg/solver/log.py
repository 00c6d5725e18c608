"""A run's events as Caffe's log lines, so that the scripts people have for Caffe's logs keep working."""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TextIO

from forcereg.errors import ForceregError
from forcereg.net.scoring import Output
from forcereg.system.events import Event
from forcereg.system.terminal import bar, echo, log_line, lost

Write = Callable[[str], None]


def glog_prefix(level: str, file: str, line: int = 1) -> str:
    """'I1122 06:35:11.123456 4711 solver.py:1] ': level, month and day (4 digits), time, thread, source."""
    now = datetime.datetime.now()
    return f"{level}{now:%m%d %H:%M:%S.%f} {threading.get_native_id()} {file}:{line}] "


class GlogWriter:
    """Writes messages with glog's prefix to a stream; `write` can be replaced while a progress bar is up.

    `file` is what the prefix calls their source. That a log on standard error can't be written is said once, on
    standard output, and ends nothing.
    """

    def __init__(self, stream: TextIO | None = None, file: str = "solver.py") -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._file = file
        self._told = False
        self.write: Write = self._plain

    def _plain(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def line(self, message: str, level: str = "I") -> None:
        """One log line."""
        self.write(glog_prefix(level, self._file) + log_line(message))
        if not self._told and self._stream is sys.stderr and (why := lost()) is not None:
            self._told = True
            with contextlib.suppress(ForceregError, BrokenPipeError):
                echo(f"forcereg: warning: standard error can't be written ({why.strerror}); going on without a log")

    def __call__(self, event: Event) -> None:
        # a kind without a line of Caffe's has no method, and a new one needs none
        render = getattr(self, f"on_{event.kind}", None)
        if render is not None:
            render(event)

    def on_start(self, event: Event) -> None:
        self.line(f"Solving {event.net}")
        self.line(f"Learning Rate Policy: {event.policy}")

    def on_note(self, event: Event) -> None:
        self.line(event.text)

    def on_warning(self, event: Event) -> None:
        self.line(event.text, "W")

    def on_weights(self, event: Event) -> None:
        self.line(f"Finetuning from {event.file}")
        for text in event.report.lines():
            self.line(text)

    def on_restore(self, event: Event) -> None:
        self.line(f"Restoring previous solver status from {event.state}")

    def on_test_start(self, event: Event) -> None:
        self.line(f"Iteration {event.iteration}, Testing net (#{event.net})")

    def on_test(self, event: Event) -> None:
        if event.loss is not None:
            self.line(f"Test loss: {event.loss:g}")
        self._outputs("Test", event.outputs)

    def on_left(self, event: Event) -> None:
        # in no form that scripts for Caffe's logs take for another
        self.line(f"    Time left: about {span(event.seconds)}")

    def on_train(self, event: Event) -> None:
        pace = f"({event.speed:g} iter/s, {event.seconds:g}s/{event.interval} iters)"
        self.line(f"Iteration {event.iteration} {pace}, loss = {event.loss:g}")
        self._outputs("Train", event.outputs)

    def on_rate(self, event: Event) -> None:
        self.line(f"Iteration {event.iteration}, lr = {event.rate:g}")

    def on_masks(self, event: Event) -> None:
        said = {"DISCONNECTED_ELTWISE": "all zero weights", "DISCONNECTED_GRPWISE": "weights lying in all-zero groups"}
        for layer in event.layers:
            self.line(f"layer\t{layer['layer']}\thas sparsity of {layer['share']:g}")
            if layer["mode"]:
                self.line(f"{said[layer['mode']]} of {layer['layer']} are frozen")

    def on_sparsity(self, event: Event) -> None:
        for title, kind in (("    Element", "element"), ("     Column", "column"), ("        Row", "row")):
            self._row(f"{title} Sparsity %: ", [f"{layer[kind]:g}" for layer in event.layers])
        blocks = (layer["blocks"] for layer in event.layers)
        told = ["".join(f"({one['x']},{one['y']}):{one['percent']:g};" for one in found) for found in blocks]
        self._row("      Block Sparsity %: ", told)
        term, total = event.regularization, event.total
        self.line(f"    Total regularization terms: {term:g} loss+regular. : {total:g}")

    def _row(self, title: str, values: Iterable[str]) -> None:
        """A record of two lines, as the SSL branch has them: the second one has no prefix."""
        self.write(glog_prefix("I", self._file) + title + "\n" + "".join(f"{value}\t" for value in values))

    def on_pruning(self, event: Event) -> None:
        for layer in event.layers:
            self.line(f"Iteration {event.iteration}, weights of {layer['layer']} left = {layer['share']:.2%}")

    def on_decision(self, event: Event) -> None:
        self.line(f"Iteration {event.iteration}, {event.text}")

    def on_scale(self, event: Event) -> None:
        self.line(f"Iteration {event.iteration}, loss scale = {event.scale:g}, steps left out = {event.skipped}")

    def on_force(self, event: Event) -> None:
        """In no form that scripts for Caffe's logs take for another: above all without "Iteration"."""
        if event.fields.get("warned", True):
            return  # or no measurement of it
        line = f"    ||force|| / ||gradient|| = {event.ratio:.3g}"
        if len(event.layers) > 1:
            least, *_, most = sorted(event.layers, key=lambda layer: layer["ratio"])
            line += f" (from {least['ratio']:.3g} of {least['layer']} to {most['ratio']:.3g} of {most['layer']})"
        self.line(line)

    def on_gradients(self, event: Event) -> None:
        here, alone = 1e3 * event.seconds, 1e3 * event.alone
        self.line(
            f"Of {event.ranks} processes an iteration takes {here:.4g} ms, {alone:.4g} ms if none sends gradients"
        )
        link = f"At {event.bandwidth / 1e6:.4g} Mbit/s" + ("" if event.given else ", as it comes to here")
        self.line(f"{link}, communication takes {event.share:.0%} of an iteration; of each scheme:")
        heads = (
            f"{'Mbit sent':>10} {'ms to compute':>14} {'ms an iteration':>16} {'gain':>7} {'cosine':>7} {'zeros':>6}"
        )
        self.line(f"    {'':9} {heads}")
        for one in event.schemes:
            times = [f"{1e3 * one[key]:.4g}" for key in ("work", "seconds")]
            numbers = (
                f"{one['bits'] / 1e6:10.4g} {times[0]:>14} {times[1]:>16} {one['gain']:>7.0%} {one['cosine']:7.4f} "
                f"{one['zeros']:>6.0%}"
            )
            self.line(f"    {one['scheme']:9} {numbers}")
        self.line(event.text[0].upper() + event.text[1:])

    def on_debug(self, event: Event) -> None:
        for row in event.rows:
            where = f"Layer {row['layer']}, {row['kind']} blob {row['blob']}"
            self.line(f"    [{row['direction']}] {where} {row['of']}: {row['value']:g}")
        if event.norms:
            norms = [f"{name} norm = ({data:g}, {diff:g})" for name, (data, diff) in event.norms.items()]
            # an error's letter in the prefix, as Caffe has it (LOG(ERROR)), though none happened
            self.line(f"    [Backward] All net params (data, diff): {'; '.join(norms)}", "E")

    def on_batch(self, event: Event) -> None:
        for output in event.outputs:
            self.line(f"Batch {event.index}, {output.name} = {output.value:g}")

    def on_final(self, event: Event) -> None:
        self.line(f"Iteration {event.iteration}, loss = {event.loss:g}")

    def on_ranks(self, event: Event) -> None:
        for layer in event.layers:
            cut = f" (was {layer['before']}, keeps {layer['kept']:.4f})" if "before" in layer else ""
            self.line(f"Iteration {event.iteration}, rank of {layer['layer']} = {layer['rank']}{cut}")

    def on_step(self, event: Event) -> None:
        self.line(f"MultiStep Status: Iteration {event.iteration}, step = {event.current_step}")

    def on_snapshot(self, event: Event) -> None:
        kind = "binary proto" if event.binary else "HDF5"
        self.line(f"Snapshotting to {kind} file {event.model}")
        self.line(f"Snapshotting solver state to {kind} file {event.state}")
        if "average" in event.fields:
            self.line(f"Snapshotting averaged weights to {kind} file {event.average}")

    def on_rollback(self, event: Event) -> None:
        often = f"{event.done} of at most {event.times}"
        self.line(event.text, "W")
        self.line(f"Going back to iteration {event.iteration} with the rate times {event.factor:g} ({often})", "W")

    def on_best(self, event: Event) -> None:
        before = event.before
        known = "" if before is None else f" (was {before['value']:g} at iteration {before['iteration']})"
        kept = "" if event.model is None else f", kept as {event.model}"
        self.line(f"Iteration {event.iteration}, best {event.output} = {event.value:g}{known}{kept}")

    def on_enough(self, event: Event) -> None:
        self.line(f"Iteration {event.iteration}, stopping early: {event.text}")

    def on_stopped(self, event: Event) -> None:
        self.line("Optimization stopped early.")

    def on_done(self, event: Event) -> None:
        self.line("Optimization Done.")

    def _outputs(self, phase: str, outputs: Iterable[Output]) -> None:
        for index, output in enumerate(outputs):
            self.line(f"    {phase} net output #{index}: {describe(output)}")


def span(seconds: float) -> str:
    """'0:02:10', with '3 days, ' in front."""
    return str(datetime.timedelta(seconds=round(seconds)))


def describe(output: Output) -> str:
    """'accuracy = 0.9913', with ' (* 1 = 0.03 loss)' behind a weighted one."""
    text = f"{output.name} = {output.value:g}"
    if output.weight:
        text += f" (* {output.weight:g} = {output.weight * output.value:g} loss)"
    return text


class ProgressBar:
    """A bar over the iterations on a terminal; log lines go above it."""

    STRIDE = 10  # drawing more often than this costs more than it shows

    def __init__(self, log: GlogWriter) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

        title, *told = (TextColumn(f"{{task.{name}}}") for name in ("description", "fields[loss]", "fields[left]"))
        self._bar = bar(title, BarColumn(), MofNCompleteColumn(), *told)
        self._log = log
        self._task = self._bar.add_task("training", total=None, loss="", left="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        # rich draws the bar anew below what its own console prints
        self._log.write = lambda line: self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._log.write = self._log._plain

    def __call__(self, event: Event) -> None:
        if event.kind == "progress" and event.iteration % self.STRIDE == 0:
            self._bar.update(self._task, total=event.max_iter, completed=event.iteration)
        elif event.kind == "train":
            left = "" if event.left is None else f"{span(event.left)} left"
            self._bar.update(self._task, loss=f"loss {event.loss:.4g}", left=left)
        elif event.kind == "left":
            self._bar.update(self._task, left=f"{span(event.seconds)} left")
