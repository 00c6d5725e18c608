"""`forcereg data`: LMDBs from MNIST, scikit-learn's digits, CIFAR-10 and lists of images; mean images."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.options import decode_option
from forcereg.system.events import Event, Observer
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.data.convert import Written

_force = click.option("--force", "-f", is_flag=True, help="Replace what is there.")
_folder = click.Path(file_okay=False, path_type=Path)
_pixels = click.IntRange(1, 65_500)  # the largest size of a JPEG


@click.group(epilog="\b\nExample: forcereg data mnist ~/mnist configs/examples/mnist")
@click.pass_context
def command(context: click.Context) -> None:
    """Prepare data sets as LMDBs, with the names and keys that Caffe's converters give, and mean images."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # end as Ctrl-C does: nothing half written stays behind
        context.call_on_close(partial(signal.signal, number, signal.signal(number, _stop)))


def _stop(number: int, frame: object) -> None:
    # as shells have it
    sys.exit(128 + number)


@command.command(short_help="MNIST's idx files -> two LMDBs.")
@click.argument("idx_dir", type=_folder)
@click.argument("out_dir", type=_folder)
@decode_option
@_force
def mnist(idx_dir: Path, out_dir: Path, force: bool) -> None:
    """MNIST's four idx files (plain or .gz) -> OUT_DIR/mnist_train_lmdb, OUT_DIR/mnist_test_lmdb.

    \b
    Example:
      forcereg data mnist ~/mnist configs/examples/mnist
    """
    from forcereg.workflows.data import convert_mnist

    with _telling() as observer:
        written = convert_mnist(idx_dir, out_dir, force=force, observer=observer)
    _report(written)


@command.command(short_help="scikit-learn's digits -> two LMDBs.")
@click.argument("out_dir", type=_folder)
@_force
def digits(out_dir: Path, force: bool) -> None:
    """The 1,797 handwritten digits of scikit-learn, at 28x28, under MNIST's names: 1,497 train, 300 test.

    \b
    Example:
      forcereg data digits configs/examples/mnist
    """
    from forcereg.workflows.data import convert_digits

    with _telling() as observer:
        written = convert_digits(out_dir, force=force, observer=observer)
    _report(written)


@command.command(short_help="CIFAR-10 -> two LMDBs and the mean image.")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("out_dir", type=_folder)
@decode_option
@_force
def cifar10(src: Path, out_dir: Path, force: bool) -> None:
    """CIFAR-10 -> cifar10_train_lmdb, cifar10_test_lmdb, mean.binaryproto; zero-padded by 4 for ResNets too.

    SRC is a folder or tar file of data_batch_1..5.bin and test_batch.bin, of the same for Python (without .bin), or of
    train/<class>/ and test/<class>/ folders of images. Planes are stored R, G, B; images from class folders are
    shuffled (seed 0).

    \b
    Example:
      forcereg data cifar10 ~/cifar-10-batches-bin configs/examples/cifar10
    """
    from forcereg.workflows.data import convert_cifar10

    with _telling() as observer:
        written = convert_cifar10(src, out_dir, force=force, observer=observer)
    _report(written)


@command.command(short_help="A list of image files -> an LMDB.")
@click.argument("listing", metavar="LIST", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT_LMDB", type=_folder)
@click.option("--root", metavar="FOLDER", type=_folder, help="Folder that the list's paths start from [default: here].")
@click.option("--resize-height", metavar="N", type=_pixels, help="Resize to N rows (with --resize-width).")
@click.option("--resize-width", metavar="N", type=_pixels, help="Resize to N columns (with --resize-height).")
@click.option("--gray", is_flag=True, help="Store one grey channel.")
@click.option("--shuffle", is_flag=True, help="Store in random order, decided by --seed.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of --shuffle.")
@click.option("--encoded", is_flag=True, help="Store image files instead of raw pixels, unchanged where possible.")
@click.option("--encode-type", type=click.Choice(["jpg", "png"]), help="Store all as such files; implies --encoded.")
@click.option("--check-size", is_flag=True, help="Refuse images of different sizes.")
@decode_option
@_force
def images(listing: Path, out: Path, **options: Any) -> None:
    """Images that LIST names, in lines of a path and a label -> LMDB (Caffe's convert_imageset).

    Keys are the line's number, from 00000000 on, and the path; planes are stored B, G, R. Images that can't be read
    are named and left out. With --encoded a file is stored as it is unless it is resized, has other colours or is of
    another kind than --encode-type.

    \b
    Example:
      forcereg data images train.txt train_lmdb --root ~/photos --resize-height 256 --resize-width 256 --shuffle
    """
    from forcereg.workflows.data import convert_imageset

    with _telling() as observer:
        written = convert_imageset(listing, out, **options, observer=observer)
    several = "several sizes (train with crop_size or batch_size: 1, or give --resize-height/-width)"
    shape = "x".join(map(str, written.shape)) or several
    order = f", shuffled with seed {options['seed']}" if options["shuffle"] else ""
    left_out = f"; unreadable and left out: {written.skipped:,}" if written.skipped else ""
    echo(f"wrote {out}: {written.records:,} records of {shape}{order}{left_out}")


@command.command(short_help="The mean image of an LMDB or LevelDB.")
@click.argument("source", metavar="LMDB_OR_LEVELDB", type=_folder)
@click.argument("out", metavar="OUT.binaryproto", type=click.Path(path_type=Path))
@decode_option
@_force
def mean(source: Path, out: Path, force: bool) -> None:
    """The mean image of an LMDB or LevelDB, as a mean_file (Caffe's compute_image_mean), and the mean of each channel.

    \b
    Example:
      forcereg data mean train_lmdb mean.binaryproto
    """
    from forcereg.workflows.data import convert_mean

    with _telling() as observer:
        image, count = convert_mean(source, out, force=force, observer=observer)
    echo(f"wrote {out}: the mean of {count:,} images of {'x'.join(map(str, image.shape))}")
    for number, channel in enumerate(image):
        echo(f"mean of channel {number}: {channel.mean(dtype='float64'):g}")


@contextlib.contextmanager
def _telling() -> Iterator[Observer]:
    """Warnings on standard error, progress as bars."""
    from forcereg.report.progress import Bars

    with Bars() as bars:

        def told(event: Event) -> None:
            if event.kind == "warning":
                echo(f"warning: {event.text}", err=True)
            bars(event)

        yield told


def _report(written: Iterable[Written]) -> None:
    for item in written:
        echo(f"wrote {item.path}: {item.records:,} records of {'x'.join(map(str, item.shape))}")
