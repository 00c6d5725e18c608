"""forcereg draw"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.options import code_options, given_shapes, net_options
from forcereg.commands.telling import lines
from forcereg.system.terminal import echo


@click.command(
    cls=CaffeCommand, epilog="\b\nExample: forcereg draw configs/models/googlenet/deploy.prototxt googlenet.svg"
)
@click.argument("net", metavar="NET", type=click.Path())
@click.argument("out", metavar="OUT.svg|png|pdf|dot|txt", type=click.Path(dir_okay=False, path_type=Path))
@net_options
@click.option(
    "--rankdir", type=click.Choice(["TB", "BT", "LR", "RL"]), default="TB", show_default=True,
    help="Where data flows in a picture: from top to bottom, left to right, or the other way.",
)  # fmt: skip
@click.option("--display-lrm", is_flag=True, help="Show the lr_mult of weights and bias.")
@code_options
def command(
    net: str,
    out: Path,
    phase: str,
    level: int,
    stage: str,
    input_shape: tuple[str, ...],
    rankdir: str,
    display_lrm: bool,
    allow_python_layers: bool,
) -> None:
    """Draw a net's layers and how data flows through them.

    Pictures need graphviz (its command `dot`); without it the text tree is written instead, to OUT.txt.
    """
    from forcereg.workflows.draw import draw

    written = draw(
        net, out, phase=phase, level=level, stage=stage, input_shapes=given_shapes(input_shape),
        rankdir=rankdir, display_lrm=display_lrm, allow_python_layers=allow_python_layers, observer=lines,
    )  # fmt: skip
    echo(f"wrote {written}")
