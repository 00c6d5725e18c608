"""forcereg export"""

from __future__ import annotations

import click

from forcereg.commands.options import code_options, given_shapes, input_shape_option
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg export lenet_iter_10000.caffemodel.h5 -o lenet.onnx")
@click.argument("net", metavar="NET_OR_SNAPSHOT", type=click.Path())
@click.option("-o", "--out", metavar="OUT", type=click.Path(), required=True,
              help="File to write; its ending says as what: .onnx, .prototxt, .caffemodel(.h5), .pt2, .safetensors "
                   "or .npz.")  # fmt: skip
@click.option("--weights", metavar="FILE", type=click.Path(), help="Model of NET.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N",
              help="Size of axis 0 of the inputs.  [default: open in .onnx, where the net allows]")  # fmt: skip
@click.option("--dynamic", metavar="H,W", default="", help="Axes of images that stay open too, where the net allows.")
@click.option("--opset", type=click.IntRange(min=1), metavar="N",
              help="Version of ONNX's operators.  [default: the newest that usual runtimes take]")  # fmt: skip
@click.option("--no-fold", is_flag=True, help="Leave BatchNorm and Scale as they are.")
@click.option("--no-verify", is_flag=True, help="Write the file without running it and comparing its blobs.")
@click.option("--with-transform", is_flag=True,
              help="Scale and mean of the net's data layer come first: the file takes pixels.")  # fmt: skip
@click.option("--rgb", is_flag=True, help="The file takes red, green, blue, and turns them into blue, green, red.")
@click.option("--solver", metavar="FILE", type=click.Path(), help="Compare on its test batches too, and score them.")
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="How many of them.  [default: test_iter]")
@click.option("--outputs", metavar="A,B", default="", help="Blobs to end in.  [default: as deploy]")
@input_shape_option
@click.option("--level", type=int, default=0, help="Level of the net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the net's state, comma separated.")
@code_options
def command(
    net: str,
    out: str,
    weights: str | None,
    batch: int | None,
    dynamic: str,
    opset: int | None,
    no_fold: bool,
    no_verify: bool,
    with_transform: bool,
    rgb: bool,
    solver: str | None,
    iterations: int | None,
    outputs: str,
    input_shape: tuple[str, ...],
    level: int,
    stage: str,
    allow_python_layers: bool,
) -> None:
    """Write a trained net as a file for other programs, and prove that it computes the same.

    The net is what deploy makes: inputs for data, probabilities for losses. An ONNX file has canonical nodes under the
    layers' names and blobs under theirs; it is run by ONNX Runtime, and gets its name only if every blob is ours.
    """
    from forcereg.workflows.export import export

    done = export(
        net,
        out,
        weights=weights,
        batch=batch,
        dynamic=[letter for letter in dynamic.split(",") if letter],
        opset=opset,
        fold=not no_fold,
        verify=not no_verify,
        with_transform=with_transform,
        rgb=rgb,
        solver=solver,
        iterations=iterations,
        outputs=[name for name in outputs.split(",") if name],
        input_shapes=given_shapes(input_shape),
        level=level,
        stage=stage,
        allow_python_layers=allow_python_layers,
    )
    for name, shape in done.inputs.items():
        text = f": {done.preparation[name]}" if name in done.preparation else ""
        echo(f"input {name} {'x'.join(map(str, shape))}{text}")
    for name, shape in done.outputs.items():
        echo(f"output {name} {'x'.join(map(str, shape)) or 'scalar'}")
    echo(*done.notes)
    if (proof := done.proof) is not None:
        echo(
            f"equal: {proof.blobs} blobs on {proof.batches} batch{'es' if proof.batches > 1 else ''}; largest "
            f"difference {proof.difference:.1e}, of '{proof.blob}', whose values reach {proof.magnitude:.3g}"
        )
    for name, (ours, theirs) in done.scores.items():
        echo(f"{name}: {ours:.4f} here, {theirs:.4f} by the file")
    echo(f"wrote {' and '.join(done.paths)}: {done.summary}")
