"""forcereg deploy"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.options import code_options, given_shapes, input_shape_option, stage_list
from forcereg.errors import UsageError, printable
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.net.deploy import Deployed
    from forcereg.schema.text import NetFile
    from forcereg.snapshot import ModelFile

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
    from forcereg.net.deploy import deploy

    file, model = opened(net, weights)
    if out is not None and not out.endswith(ENDING):
        raise UsageError(f"--out is '{out}'; expected a name that ends in {ENDING}")
    prefix = Path(out.removesuffix(ENDING)) if out is not None else default(net)
    done = deploy(
        file,
        batch=batch,
        outputs=tuple(name for name in (outputs or "").split(",") if name),
        input_shapes=given_shapes(input_shape),
        known_shapes=model.input_shapes if model else None,
        weighted=[name for name, blobs in model.layers.items() if blobs] if model else (),
        level=level,
        stages=stage_list(stage),
        allow_python_layers=allow_python_layers,
    )
    written = write(prefix, done, file, model, [net, *filter(None, [weights])])
    for name, shape in done.inputs.items():
        echo(
            f"input {name} {'x'.join(map(str, shape))}" + (f": {text}" if (text := done.preparation.get(name)) else "")
        )
    for name, found in done.outputs.items():
        echo(f"output {name}" + (f" {'x'.join(map(str, found)) or 'scalar'}" if found is not None else ""))
    if done.auxiliary:
        echo(f"auxiliary, left out: {', '.join(done.auxiliary)}; --outputs names blobs to end in instead")
    echo(f"wrote {' and '.join(written)}")


def opened(net: str, weights: str | None) -> tuple[NetFile, ModelFile | None]:
    """The net of a prototxt or snapshot, and its weights where there are any. Raises ForceregError."""
    from forcereg.net.read import read_net_of
    from forcereg.schema.text import is_text, read_net

    if is_text(net):
        if weights is None:
            return read_net(net), None
        found = read_net_of(weights, net)
    elif weights is not None:
        raise UsageError(f"{net} is a snapshot, which has weights; leave out --weights, or give its net's prototxt")
    else:
        found = read_net_of(net)
    return found.file, found.model


def default(net: str) -> Path:
    """`<name>_deploy` beside the net or snapshot, without its endings."""
    from forcereg.net.made import default_prefix

    return default_prefix(net.removesuffix(ENDING), "deploy")


def write(prefix: Path, done: Deployed, file: NetFile, model: ModelFile | None, read: list[Any]) -> list[str]:
    """Writes the net and, with `model`, its weights; their paths. Raises UsageError for one that was `read`."""
    from forcereg.net.deploy.weights import write_weights
    from forcereg.schema.text import to_text
    from forcereg.snapshot import is_binary
    from forcereg.system.files import write_text

    binary = model is not None and is_binary(model.path)
    paths = [Path(f"{prefix}{ENDING}")]
    paths += [] if model is None else [Path(f"{prefix}.caffemodel{'' if binary else '.h5'}")]
    for path in paths:
        if any(path.resolve() == Path(one).resolve() for one in [*read, *([model.path] if model else [])]):
            raise UsageError(f"{path} is what was read; give another name by --out")
    heads = [f"{Path(read[0]).name}: for use, by forcereg deploy"]
    heads += [f"{name}: {text}" for name, text in done.preparation.items()]
    text = "".join(f"# {printable(head)}\n" for head in heads) + to_text(done.net)
    if model is not None:
        write_weights(paths[1], text, done.inputs, model, file, binary)
    write_text(paths[0], text)
    return list(map(str, paths))
