"""forcereg deploy"""

from __future__ import annotations

import click

from forcereg.commands.options import code_options, given_shapes, input_shape_option
from forcereg.errors import UsageError
from forcereg.system.terminal import echo

ENDING = ".prototxt"


@click.command(epilog="\b\nExample: forcereg deploy lenet_iter_10000.caffemodel.h5 -o lenet.prototxt")
@click.argument("net", metavar="NET_OR_SNAPSHOT", type=click.Path())
@click.option("-o", "--out", metavar="OUT.prototxt", type=click.Path(),
              help="Net to write.  [default: <name>_deploy.prototxt beside it]")  # fmt: skip
@click.option("--weights", metavar="FILE", type=click.Path(),
              help="Model of NET: its weights are written beside OUT, as those of a snapshot are.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), metavar="N",
              help="Size of axis 0 of the inputs.  [default: 1, of recurrent nets the file's]")  # fmt: skip
@click.option("--outputs", metavar="A,B", help="Blobs to end in.  [default: what losses are told, and outputs]")
@input_shape_option
@click.option("--level", type=int, default=0, help="Level of the net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the net's state, comma separated.")
@code_options
def command(
    net: str,
    out: str | None,
    weights: str | None,
    batch: int | None,
    outputs: str | None,
    input_shape: tuple[str, ...],
    level: int,
    stage: str,
    allow_python_layers: bool,
) -> None:
    """Write a trained net for use: its TEST net with inputs for data, probabilities for losses, and no labels.

    Layers keep their names, so that weights fit. Of a snapshot, also after decompose or finetune, a model with only
    the weights that are left is written beside it, in the same format. What data layers did to images (mean, scale,
    crop) is up to the caller: it is said, and in a comment of the net.
    """
    from forcereg.workflows.deploy import deploy

    if out is not None and not out.endswith(ENDING):
        raise UsageError(f"--out is '{out}'; expected a name that ends in {ENDING}")
    done = deploy(
        net,
        weights=weights,
        batch=batch,
        outputs=[name for name in (outputs or "").split(",") if name],
        input_shapes=given_shapes(input_shape),
        level=level,
        stage=stage,
        allow_python_layers=allow_python_layers,
    )
    written = done.write(None if out is None else out.removesuffix(ENDING))
    for name, shape in done.inputs.items():
        echo(
            f"input {name} {'x'.join(map(str, shape))}" + (f": {text}" if (text := done.preparation.get(name)) else "")
        )
    for name, found in done.outputs.items():
        echo(f"output {name}" + (f" {'x'.join(map(str, found)) or 'scalar'}" if found is not None else ""))
    if done.auxiliary:
        echo(f"auxiliary, left out: {', '.join(done.auxiliary)}; --outputs names blobs to end in instead")
    echo(f"wrote {' and '.join(written.values())}")
