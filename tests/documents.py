"""The documents: their links, and their examples as they run in a scratch folder.

`<!-- run -->` on the line above a fence marks an example. Of an `sh` block, `$ ` opens a line that is run and what
follows is the output that a terminal shows, in which `...` stands for anything (also for lines); without any `$ `, the
block is a script whose output isn't looked at. A `python` block runs as it is, or as a doctest if it has `>>>`.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

TOP = Path(__file__).resolve().parents[1]
MARK = "<!-- run -->"
SNAPSHOT = "lenet_force_iter_10000.caffemodel.h5"
"""What lies in the scratch folder beside the files of `forcereg new lenet .`."""

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(\S*)[^\n]*\n(.*?)^\1\2`*~* *$\n?", re.M | re.S)
_LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)>?[^)]*\)|<(?:a|img)\s[^>]*?(?:href|src)="([^"]*)\"""")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", re.M)
_ID = re.compile(r"""<[a-z]+\s[^>]*?(?:id|name)="([^"]+)\"""")


class Block(NamedTuple):
    """A fenced example: the number of its first line, its language, its text."""

    line: int
    language: str
    text: str


class Step(NamedTuple):
    """A command of an example and what it shows; None if nobody says."""

    line: int
    command: str
    shows: str | None


def pages(top: Path = TOP) -> list[Path]:
    """All .md files below `top`, hidden folders left out."""
    found = []
    for folder, below, names in os.walk(top):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".md")]
    return found


# -- links


def prose(text: str) -> str:
    """A page without fenced and inline code, in which nothing is a link or a heading."""
    return re.sub(r"(`+)[^`\n]+\1", "", _FENCE.sub("\n", text))


def anchors(text: str) -> set[str]:
    """What `#...` may name: headings as GitHub spells them, and ids."""
    found: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("\n", text)):
        shown = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.append(slug)
    repeated = (f"{slug}-{found[:at].count(slug)}" for at, slug in enumerate(found))
    return {*(slug.removesuffix("-0") for slug in repeated), *_ID.findall(text)}


def broken_links(page: Path, top: Path = TOP) -> list[str]:
    """The relative links of a page that lead nowhere, or out of `top`."""
    found = []
    for link in (one or other for one, other in _LINK.findall(prose(page.read_text(encoding="utf-8")))):
        if re.match(r"[a-z][a-z+.-]*:", link):  # to the web
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(top.resolve())
        if not inside or not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


# -- examples


def examples(text: str) -> list[Block]:
    """The marked blocks of a page. Raises AssertionError for a mark without a fence below."""
    lines, found = text.splitlines(keepends=True), []
    fences = {text.count("\n", 0, match.start()): match for match in _FENCE.finditer(text)}
    for number, line in enumerate(lines):
        if line.strip() == MARK and not any(f.start() < _start(lines, number) < f.end() for f in fences.values()):
            assert number + 1 in fences, f"line {number + 1}: {MARK} has no fenced block on the next line"
            match = fences[number + 1]
            found.append(Block(number + 3, match[3], match[4]))
    return found


def _start(lines: list[str], number: int) -> int:
    return sum(map(len, lines[:number]))


def steps(block: Block) -> Iterator[Step]:
    """The commands of an `sh` block."""
    lines = block.text.splitlines(keepends=True)
    starts = [at for at, line in enumerate(lines) if line.startswith("$ ")]
    if not starts:
        yield Step(block.line, block.text, None)
        return
    assert starts[0] == 0, f"line {block.line}: an example opens with a command, as in '$ forcereg --help'"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = start
        while lines[last].endswith("\\\n"):
            last += 1
        command = "".join(lines[start : last + 1])[2:].rstrip("\n")
        yield Step(block.line + start, command, "".join(lines[last + 1 : end]))


class Session:
    """A page's examples, one after the other, in one folder. `programs`: a folder whose forcereg and python run."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        """Raises AssertionError with the line if an example doesn't do what it says."""
        if block.language in ("python", "py", "pycon"):
            self._python(block)
            return
        assert block.language in ("sh", "bash", "console"), f"line {block.line}: no language that runs here"
        for step in steps(block):
            self._shell(step)

    def _shell(self, step: Step) -> None:
        code, shown = self._bash(step.command)
        fails = bool(step.shows) and any(line.startswith("forcereg: ") for line in (step.shows or "").splitlines()[-1:])
        assert bool(code) == fails, f"line {step.line}: {step.command}\nexit code {code}\n{shown}"
        if step.shows is not None:
            assert _same(step.shows, shown), f"line {step.line}: {step.command}\nsays\n{step.shows}\nfound\n{shown}"

    def _bash(self, command: str) -> tuple[int, str]:
        path = os.pathsep.join((str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]))
        call = ["bash", "-e", "-c", command]
        env = {**os.environ, "PATH": path, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            call, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.returncode, done.stdout

    def _python(self, block: Block) -> None:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            if ">>> " not in block.text:
                exec(compile("\n" * (block.line - 1) + block.text, "the page", "exec"), self._names)
                return
            test = doctest.DocTestParser().get_doctest(block.text, self._names, "the page", None, block.line - 1)
            said: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append, clear_globs=False)
            self._names = test.globs
            assert not said, f"line {block.line}:\n{''.join(said)}"
        finally:
            os.chdir(before)


def _same(says: str, found: str) -> bool:
    """Whether it is the output, blanks at the ends of lines aside."""
    parts = [re.escape(part) for part in _bare(says).split("...")]
    return re.fullmatch(".*?".join(parts), _bare(found), re.S) is not None


def _bare(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))


def scratch(folder: Path) -> Path:
    """Fills the folder: `forcereg new lenet .`, and its net's snapshot low in rank as force leaves them."""
    import numpy as np

    from forcereg.net.load import load_net
    from forcereg.schema.starter import lenet
    from forcereg.snapshot import write_model

    files = lenet().files
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    solver, trained, deployed = files.values()
    net = load_net(deployed, seed=1)
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(held)} for name, held in net.params.items()}
    for name, decay in (("conv1", 0.85), ("conv2", 0.6)):
        weight = blobs[name][0]
        left, axes, right = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
        axes = axes[0] * decay ** np.arange(len(axes))
        blobs[name][0] = ((left * axes) @ right).reshape(weight.shape).astype(np.float32)
    attrs = {
        "forcereg_net": trained,
        "forcereg_solver": solver,
        "forcereg_seed": "1",
        "forcereg_input_shapes": json.dumps({"data": [64, 1, 28, 28], "label": [64]}),
    }
    write_model(folder / SNAPSHOT, blobs, attrs=attrs)
    return folder
