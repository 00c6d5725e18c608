"""A graph as a picture without graphviz: boxes in rows by how far they are from the data, lines between."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "gif": "GIF", "bmp": "BMP", "pdf": "PDF", "tiff": "TIFF"}
"""What Pillow writes, beside svg."""
GAP, MARGIN, LINE = 24, 6, 14
"""Pixels between boxes, within them, and of a line of text."""

Edge = tuple[str, str, str]


@dataclass
class Box:
    """A node: its lines of text and colour, `size` of the box, and the `place` of its upper left corner."""

    lines: list[str]
    fill: str
    size: tuple[int, int]
    place: tuple[int, int] = (0, 0)

    @property
    def middle(self) -> tuple[int, int]:
        """Where lines go to."""
        return self.place[0] + self.size[0] // 2, self.place[1] + self.size[1] // 2


def picture(nodes: Mapping[str, Mapping[str, str]], edges: Sequence[Edge], rankdir: str, form: str) -> bytes | None:
    """The picture of nodes (name -> settings of graphviz) and edges (from, to, label); None for an unknown format."""
    if form not in (*FORMATS, "svg"):
        return None
    boxes = {name: _box(settings) for name, settings in nodes.items()}
    size = _arrange(boxes, edges, rankdir)
    return _svg(boxes, edges, size) if form == "svg" else _pixels(boxes, edges, size, FORMATS[form])


def _box(settings: Mapping[str, str]) -> Box:
    from PIL import ImageFont

    lines = _plain(settings["label"]).split("\n")
    font = ImageFont.load_default()
    wide = max(int(font.getlength(_latin(line))) for line in lines)
    return Box(lines, settings["fillcolor"].strip('"'), (wide + 2 * MARGIN, LINE * len(lines) + 2 * MARGIN))


def _plain(label: str) -> str:
    """A string of graphviz's language as text."""
    found = re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], label[1:-1])
    return found.replace("&amp;", "&")


def _latin(text: str) -> str:
    # what the font without FreeType has
    return text.encode("latin-1", "replace").decode("latin-1")


def _ranks(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """How many edges lie before each node, at most; a layer in place leads back to a blob, which stays where it is."""
    ranks = dict.fromkeys(names, 0)
    left: set[str] = set()
    for source, target, _ in edges:
        left.add(source)
        if target not in left:
            ranks[target] = max(ranks[target], ranks[source] + 1)
    return ranks


def _arrange(boxes: dict[str, Box], edges: Sequence[Edge], rankdir: str) -> tuple[int, int]:
    """Places the boxes; the size of the whole."""
    ranks = _ranks(list(boxes), edges)
    along = 1 if rankdir in ("TB", "BT") else 0  # the axis on which data flows
    whole, start = [0, 0], GAP
    for rank in range(max(ranks.values(), default=-1) + 1):
        row = [boxes[name] for name in boxes if ranks[name] == rank]
        beside = GAP
        for box in row:
            box.place = (beside, start) if along else (start, beside)
            beside += box.size[1 - along] + GAP
        start += max((box.size[along] for box in row), default=-GAP) + GAP
        whole[1 - along] = max(whole[1 - along], beside)
    whole[along] = start
    if rankdir in ("BT", "RL"):
        for box in boxes.values():
            turned = whole[along] - box.place[along] - box.size[along]
            box.place = (box.place[0], turned) if along else (turned, box.place[1])
    return max(whole[0], 2 * GAP), max(whole[1], 2 * GAP)


def _labels(boxes: Mapping[str, Box], edges: Sequence[Edge]) -> list[tuple[tuple[int, int], str]]:
    found = []
    for source, target, label in edges:
        if text := _plain(label):
            (x1, y1), (x2, y2) = boxes[source].middle, boxes[target].middle
            found.append((((x1 + x2) // 2, (y1 + y2) // 2), text))
    return found


def _pixels(boxes: Mapping[str, Box], edges: Sequence[Edge], size: tuple[int, int], form: str) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, "white")
    draw: Any = ImageDraw.Draw(image)
    for source, target, _ in edges:
        draw.line([boxes[source].middle, boxes[target].middle], fill="#666666")
    for box in boxes.values():
        (x, y), (wide, high) = box.place, box.size
        draw.rectangle([x, y, x + wide, y + high], fill=box.fill, outline="black")
        for number, line in enumerate(box.lines):
            draw.text((x + MARGIN, y + MARGIN + LINE * number), _latin(line), fill="black")
    for place, text in _labels(boxes, edges):
        draw.text(place, _latin(text), fill="#333333")
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def _svg(boxes: Mapping[str, Box], edges: Sequence[Edge], size: tuple[int, int]) -> bytes:
    wide, high = size
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" font-family="Arial" font-size="10">'
    parts = [head, f'<rect width="{wide}" height="{high}" fill="white"/>']
    for source, target, _ in edges:
        (x1, y1), (x2, y2) = boxes[source].middle, boxes[target].middle
        parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#666666"/>')
    for box in boxes.values():
        (x, y), (w, h) = box.place, box.size
        parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{escape(box.fill)}" stroke="black"/>')
        parts += [
            f'<text x="{x + MARGIN}" y="{y + MARGIN + LINE * number + 10}">{escape(line)}</text>'
            for number, line in enumerate(box.lines)
        ]
    parts += [f'<text x="{x}" y="{y}" fill="#333333">{escape(text)}</text>' for (x, y), text in _labels(boxes, edges)]
    return "\n".join([*parts, "</svg>", ""]).encode()
