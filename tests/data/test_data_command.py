"""`forcereg data`: what the subcommands print and refuse; images and mean as processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import forcereg.data.convert as convert
import forcereg.data.image_set as image_set
from forcereg.commands.data import command
from forcereg.data.mean import read_mean
from forcereg.errors import ForceregError
from tests.conftest import RunCli
from tests.data.lmdbs import make_feed


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


@pytest.mark.parametrize("name", ["mnist", "digits", "cifar10", "images", "mean"])
def test_help_has_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    forcereg data {name} " in result.output


def test_digits_says_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = run("digits", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"wrote {tmp_path / 'mnist_train_lmdb'}: 1,497 records of 1x28x28",
        f"wrote {tmp_path / 'mnist_test_lmdb'}: 300 records of 1x28x28",
    ]


def test_force_is_needed_to_replace(tmp_path: Path) -> None:
    def convert(*options: str) -> Result:
        return run("cifar10", tmp_path / "src", tmp_path / "out", *options)

    record = np.zeros(3073, np.uint8).tobytes()
    (tmp_path / "src").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / "src" / f"{name}.bin").write_bytes(record)
    assert convert().exit_code == 0
    assert isinstance(convert().exception, ForceregError)
    assert convert("-f").exit_code == 0


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    result = run("mnist", tmp_path / "nowhere", tmp_path / "out")
    assert isinstance(result.exception, ForceregError)
    assert "nowhere: no train-images-idx3-ubyte" in str(result.exception)


# -- images and mean


@pytest.fixture
def photos(tmp_path: Path) -> np.ndarray:
    """photos/<i>.png in tmp_path and list.txt over them, one missing; their pixels (N, 3, H, W), B, G, R."""
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"photos/{i}.png")
    (tmp_path / "list.txt").write_text("0.png 0\n1.png 1\ngone.png 7\n2.png 2\n3.png 3\n4.png 4\n")
    return pictures[..., ::-1].transpose(0, 3, 1, 2)


def test_images_then_mean(photos: np.ndarray, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("data", "images", "list.txt", "db", "--root", "photos", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote db: 5 records of 3x8x6; unreadable and left out: 1\n"
    assert done.stderr == "warning: photos/gone.png: cannot be read (No such file or directory); skipped\n"
    data, labels = make_feed(tmp_path, batch=5).next()
    np.testing.assert_array_equal(data.numpy(), photos)
    assert labels.tolist() == [0, 1, 2, 3, 4]

    done = run_cli("data", "mean", "db", "mean.binaryproto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mean = photos.mean(0, dtype=np.float64).astype(np.float32)
    channels = [f"mean of channel {i}: {m:g}" for i, m in enumerate(mean.mean((1, 2), dtype=np.float64))]
    assert done.stdout.splitlines() == ["wrote mean.binaryproto: the mean of 5 images of 3x8x6", *channels]
    np.testing.assert_array_equal(read_mean(tmp_path / "mean.binaryproto"), mean)


def test_images_with_every_option(photos: np.ndarray, tmp_path: Path, run_cli: RunCli) -> None:
    options = "--resize-height 4 --resize-width 3 --gray --shuffle --seed 5 --encoded --encode-type png --check-size -f"
    for _ in range(2):
        done = run_cli("data", "images", "list.txt", "db", "--root", "photos", *options.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("wrote db: 5 records of 1x4x3, shuffled with seed 5; unreadable")
    data, labels = make_feed(tmp_path, batch=5).next()
    assert data.shape == (5, 1, 4, 3) and sorted(labels.tolist()) == [0, 1, 2, 3, 4] != labels.tolist()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["TERM", "HUP"])
def test_a_signal_leaves_nothing_behind(
    number: signal.Signals, photos: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    handler = signal.getsignal(number)
    made = convert.write_lmdb

    def killed(path: Path, records: Iterable[tuple[bytes, bytes]], force: bool) -> None:
        def one_and_signal() -> Iterator[tuple[bytes, bytes]]:
            for record in records:
                yield record
                assert any(entry.name.startswith(".db.") for entry in tmp_path.iterdir())
                signal.raise_signal(number)

        made(path, one_and_signal(), force)

    monkeypatch.setattr(image_set, "write_lmdb", killed)
    result = run("images", tmp_path / "list.txt", tmp_path / "db", "--root", tmp_path / "photos")
    assert result.exit_code == 128 + number
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert signal.getsignal(number) is handler


def test_images_of_several_sizes_are_said(photos: np.ndarray, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "photos/4.png")
    result = run("images", tmp_path / "list.txt", tmp_path / "db", "--root", tmp_path / "photos")
    several = "several sizes (train with crop_size or batch_size: 1, or give --resize-height/-width)"
    assert f"5 records of {several}" in result.output
    result = run("mean", tmp_path / "db", tmp_path / "m")
    assert "record '00000005_4.png': is 3x9x9, expected 3x8x6 as the first" in str(result.exception)


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["images", "list.txt", "db", "--resize-width", "4"], 2, "--resize-height and --resize-width go together"),
        (["images", "list.txt", "db", "--resize-width", "0"], 2, "0 is not in the range"),
        (["images", "list.txt", "db", "--encode-type", "gif"], 2, "'gif' is not one of"),
        (["images", "none.txt", "db"], 1, "none.txt"),
        (["images", "list.txt", "db"], 1, "none of its 6 images could be read"),
        (["images", "list.txt", "photos", "-f", "--root", "photos"], 1, "photos is not an LMDB"),
        (["mean", "photos", "m"], 1, "photos"),
        (["mean", "list.txt", "m"], 2, "is a file"),
    ],
)
def test_refusals_are_one_line(
    args: list[str], code: int, expected: str, photos: np.ndarray, tmp_path: Path, run_cli: RunCli
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run_cli("data", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1].startswith("forcereg: ") and expected in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
