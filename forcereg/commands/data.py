"""`forcereg data`: LMDBs from MNIST, scikit-learn's digits, CIFAR-10."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from forcereg.data.convert import Written

_force = click.option("--force", "-f", is_flag=True, help="Replace what is there.")
_folder = click.Path(file_okay=False, path_type=Path)


@click.group()
def command() -> None:
    """Prepare data sets as LMDBs, with the names and keys that Caffe's converters give."""


@command.command()
@click.argument("idx_dir", type=_folder)
@click.argument("out_dir", type=_folder)
@_force
def mnist(idx_dir: Path, out_dir: Path, force: bool) -> None:
    """MNIST's four idx files (plain or .gz) -> OUT_DIR/mnist_train_lmdb, OUT_DIR/mnist_test_lmdb.

    \b
    Example:
      forcereg data mnist ~/mnist configs/examples/mnist
    """
    from forcereg.data.idx import convert_mnist

    _report(convert_mnist(idx_dir, out_dir, force, _track))


@command.command()
@click.argument("out_dir", type=_folder)
@_force
def digits(out_dir: Path, force: bool) -> None:
    """The 1,797 handwritten digits of scikit-learn, at 28x28, under MNIST's names: 1,497 train, 300 test.

    \b
    Example:
      forcereg data digits configs/examples/mnist
    """
    from forcereg.data.idx import convert_digits

    _report(convert_digits(out_dir, force, _track))


@command.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("out_dir", type=_folder)
@_force
def cifar10(src: Path, out_dir: Path, force: bool) -> None:
    """CIFAR-10 -> cifar10_train_lmdb, cifar10_test_lmdb, mean.binaryproto; zero-padded by 4 for ResNets too.

    SRC is a folder or tar file of data_batch_1..5.bin and test_batch.bin, or of train/<class>/ and
    test/<class>/ folders of images. Planes are stored R, G, B; images from class folders are shuffled
    (seed 0).

    \b
    Example:
      forcereg data cifar10 ~/cifar-10-batches-bin configs/examples/cifar10
    """
    from forcereg.data.cifar import convert_cifar10

    _report(convert_cifar10(src, out_dir, force, _track))


def _track(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description, total=total, console=Console(stderr=True), transient=True)


def _report(written: Iterable[Written]) -> None:
    for item in written:
        click.echo(f"wrote {item.path}: {item.records:,} records of {'x'.join(map(str, item.shape))}")
