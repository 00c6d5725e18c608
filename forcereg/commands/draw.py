"""forcereg draw"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click

from forcereg.commands.options import code_options, net_options, shape_net_asked, stage_list
from forcereg.errors import ForceregError, UsageError, printable
from forcereg.system.terminal import echo

GRAPHICS = ("svg", "png", "pdf")


@click.command(epilog="\b\nExample: forcereg draw configs/models/googlenet/deploy.prototxt googlenet.svg")
@click.argument("net", metavar="NET", type=click.Path())
@click.argument("out", metavar="OUT.svg|png|pdf|dot|txt", type=click.Path(dir_okay=False, path_type=Path))
@net_options
@code_options
def command(
    net: str,
    out: Path,
    phase: str,
    level: int,
    stage: str,
    input_shape: tuple[str, ...],
    allow_python_layers: bool,
) -> None:
    """Draw a net's layers and how data flows through them.

    Pictures need graphviz (its command `dot`); without it the text tree is written instead, to OUT.txt.
    """
    from forcereg.net.draw import dot, graph, text_tree
    from forcereg.net.load import net_file, net_spec
    from forcereg.system.files import write_bytes, write_text

    kind = out.suffix.removeprefix(".").lower()
    if kind not in (*GRAPHICS, "dot", "txt"):
        raise UsageError(f"OUT is '{out}'; expected a name that ends in .svg, .png, .pdf, .dot or .txt")
    spec = net_spec(net_file(net), phase, level, stage_list(stage))
    try:
        shapes = shape_net_asked(net, phase, level, stage, input_shape, allow_python_layers).shapes
    except ForceregError as error:
        echo(f"forcereg: warning: drawn without shapes: {error}", err=True)
        shapes = {}
    nodes = graph(spec.layers, shapes)
    title = printable(f"{spec.name or 'net'} ({phase.upper()})")
    if kind in GRAPHICS and shutil.which("dot") is None:
        echo(f"forcereg: warning: graphviz's `dot` is not installed: no {kind}, but a text tree", err=True)
        out, kind = out.with_suffix(".txt"), "txt"
    if kind in GRAPHICS:
        write_bytes(out, picture(dot(nodes, title), kind))
    else:
        write_text(out, f"{title}\n{text_tree(nodes)}" if kind == "txt" else dot(nodes, title))
    echo(f"wrote {out}")


def picture(graph: str, kind: str) -> bytes:
    """The graph as graphviz renders it. Raises ForceregError."""
    done = subprocess.run(["dot", f"-T{kind}"], input=graph.encode(), capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").splitlines() or ["no reason given"])[0]
        raise ForceregError(f"graphviz's `dot -T{kind}` failed ({reason}); write .dot and look at it")
    return done.stdout
