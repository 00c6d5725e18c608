"""The documents' links lead somewhere, and their examples do what they say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import MARK, TOP, Block, Session, anchors, broken_links, examples, pages, scratch, steps
from tests.nursery import Door

PAGES = pages()
WITH_EXAMPLES = [page for page in PAGES if MARK in page.read_text(encoding="utf-8").splitlines()]


def name(page: Path) -> str:
    return page.relative_to(TOP).as_posix()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that each page's examples start with."""
    return scratch(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """forcereg and python, which needn't load torch."""
    with Door("torch") as door:
        yield door.folder


@pytest.fixture
def session(made: Path, tmp_path: Path, programs: Path) -> Session:
    folder = tmp_path / "page"
    shutil.copytree(made, folder)
    return Session(folder, programs)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_examples(page: Path, session: Session) -> None:
    for block in examples(page.read_text(encoding="utf-8")):
        session.run(block)


def test_what_needs_no_data_has_an_example() -> None:
    text = "".join(page.read_text(encoding="utf-8") + "\n" for page in WITH_EXAMPLES)
    commands = [step.command.split() for block in examples(text) if block.language == "sh" for step in steps(block)]
    shown = {words[1] for words in commands if words[:1] == ["forcereg"]}
    assert {"--help", "new", "summary", "check", "draw", "decompose", "ranks", "deploy", "convert"} <= shown


def test_the_whole_task_of_any_module_is_short() -> None:
    """It runs above with its page."""
    task = next(iter(examples((TOP / "forcereg/nn/README.md").read_text(encoding="utf-8")))).text
    assert all(word in task for word in ("nn.Force(", "nn.decompose(", "export.save(")) and task.count("train(") == 3
    assert len(task.strip().splitlines()) <= 25


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One thing: `a` & [b](c.md)\n## Same\n## Same\n<a id='x'></a>\n```\n# No\n```\n"
    )
    good = "[a](other.md) [b](other.md#one-thing-a--b) [c](other.md#same-1 'title') [d](https://x.y/z) [e](#top)"
    assert broken_links(page_of(tmp_path, f"# Top\n{good}\n`[no](link)`\n```\n[nor](this)\n```\n"), tmp_path) == []
    bad = "[a](none.md) [b](other.md#no) ![c](none.png) [d](#nowhere) <img src='x'> <img src=\"y.png\"> [e](../x.md)"
    found = broken_links(page_of(tmp_path, bad), tmp_path)
    assert found == ["none.md", "other.md#no", "none.png", "#nowhere", "y.png", "../x.md"]


def test_anchors_are_spelled_as_github_does() -> None:
    text = "# Which rank?\n## From Caffe's `x_y`, to A-B\n## Same\n### Same ###\n"
    assert anchors(text) == {"which-rank", "from-caffes-x_y-to-a-b", "same", "same-1"}


def test_an_example_is_taken_apart() -> None:
    text = f"a\n\n{MARK}\n```sh\n$ forcereg x \\\n    --y\nout\n\n$ z\n```\n\n```sh\n$ not marked\n```\n"
    (block,) = examples(text)
    assert block.language == "sh"
    assert [(step.line, step.command, step.shows) for step in steps(block)] == [
        (5, "forcereg x \\\n    --y", "out\n\n"),
        (9, "z", ""),
    ]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        pytest.param("sh", "$ forcereg --version\nforcereg ...\n", id="dots"),
        pytest.param("sh", "$ forcereg new lenet .\n...\nnext, in ...\n", id="lines"),
        pytest.param("sh", "$ forcereg layers | grep -c Swish\n1\n", id="shell"),
        pytest.param("sh", "$ forcereg check none.prototxt\n...\nforcereg: none.prototxt: ...\n", id="fails"),
        pytest.param("sh", "forcereg --help > help.txt\ntest -s help.txt\n", id="script"),
        pytest.param("python", "import forcereg\nassert forcereg.Net\n", id="python"),
        pytest.param("python", ">>> 1 + 1\n2\n>>> 1 / 3\n0.333...\n", id="doctest"),
    ],
)
def test_an_example_runs(language: str, text: str, session: Session) -> None:
    session.run(Block(1, language, text))


@pytest.mark.parametrize(
    ("language", "text", "says"),
    [
        pytest.param("sh", "$ forcereg --version\nforcereg 0.0.0\n", "line 1: forcereg --version", id="output"),
        pytest.param("sh", "$ true\n$ forcereg --version\n", "line 2: forcereg --version", id="no-output"),
        pytest.param("sh", "$ forcereg check none.prototxt\n...\n", "exit code 1", id="code"),
        pytest.param("sh", "false\ntrue\n", "exit code 1", id="script"),
        pytest.param("python", ">>> 1 + 1\n3\n", "Expected:", id="doctest"),
        pytest.param("sh", "forcereg\n$ true\n", "opens with a command", id="no-command"),
        pytest.param("", "$ true\n", "no language", id="language"),
    ],
)
def test_a_wrong_example_is_found(language: str, text: str, says: str, session: Session) -> None:
    with pytest.raises(AssertionError, match=says):
        session.run(Block(1, language, text))


def test_a_mark_stands_above_a_fence() -> None:
    with pytest.raises(AssertionError, match="line 2: "):
        examples(f"a\n{MARK}\n\n```sh\n$ true\n```\n")
    assert examples(f"```\n{MARK}\n```\n") == []
