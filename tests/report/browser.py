"""A real browser without a window: what it says of a page, how the page lies in windows, and the page on paper."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

WIDTHS = (1280, 400)
CONSOLE = re.compile(r":CONSOLE[(:]\d+[)\]]+ (.*)")
MEASURED = re.compile(r'<pre id="measured">(.*?)</pre>', re.DOTALL)

HARNESS = """<!doctype html><meta charset="utf-8"><body>
{frames}
<pre id="measured"></pre>
<script>
function measured(frame) {{
  const page = frame.contentDocument, root = page.documentElement;
  // folded parts are measured too
  for (const one of page.querySelectorAll("details")) one.open = true;
  return {{
    width: frame.clientWidth,
    overflow: Math.max(root.scrollWidth, page.body.scrollWidth) - root.clientWidth,
    images: [...page.images].map(one => one.complete ? one.naturalWidth : 0),
    drawings: [...page.querySelectorAll("svg")].map(one => one.getBoundingClientRect().width),
    scripts: page.scripts.length,
    text: page.body.innerText,
  }};
}}
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(measured);
  document.getElementById("measured").textContent = JSON.stringify(found);
}});
</script>"""
"""A page that looks at another: as `srcdoc` it may, and the other's own policy holds for it."""


@dataclass(frozen=True)
class View:
    """A page in a window of a `width`: pixels by which it is wider, its pictures' widths, what there is to read."""

    width: int
    overflow: int
    images: list[int]
    drawings: list[float]
    scripts: int
    text: str


class Browser:
    """Chromium; each call is a process of its own. Tests skip where there is none."""

    def __init__(self, folder: Path) -> None:
        self._program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if self._program is None:
            pytest.skip("no chromium here (Debian: apt-get install chromium), so no page is looked at")
        self._folder = folder

    def console(self, page: Path) -> list[str]:
        """What the browser complains of."""
        return CONSOLE.findall(self._run(page, "--dump-dom").stderr)

    def views(self, page: Path) -> list[View]:
        """The page in a window of each of `WIDTHS`, all of it unfolded."""
        source = html.escape(page.read_text(encoding="utf-8"))
        frame = '<iframe style="width:{}px;height:900px;border:0" srcdoc="{}"></iframe>'
        frames = (frame.format(width, source) for width in WIDTHS)
        outer = self._folder / "harness.html"
        outer.write_text(HARNESS.format(frames="\n".join(frames)), encoding="utf-8")
        found = MEASURED.search(self._run(outer, "--dump-dom").stdout)
        assert found is not None
        return [View(**one) for one in json.loads(html.unescape(found[1]))]

    def printed(self, page: Path) -> bytes:
        """As PDF."""
        out = self._folder / "page.pdf"
        self._run(page, f"--print-to-pdf={out}", "--no-pdf-header-footer")
        return out.read_bytes()

    def _run(self, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
        call = [
            str(self._program), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--enable-logging=stderr", f"--user-data-dir={self._folder / 'profile'}", "--window-size=1400,1000",
            *options, page.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(call, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done
