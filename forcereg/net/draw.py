"""A net's structure for people: as text, or as a graph in graphviz's language."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from forcereg.errors import ForceregError, printable
from forcereg.schema.spec import LayerSpec, is_loss

COLORS = {
    "Convolution": "#cfe3fb", "Deconvolution": "#cfe3fb", "InnerProduct": "#d9d2f4", "Embed": "#d9d2f4",
    "LSTM": "#d9d2f4", "RNN": "#d9d2f4", "Pooling": "#fbe3c4", "SPP": "#fbe3c4", "BatchNorm": "#e2efda",
    "Scale": "#e2efda", "LRN": "#e2efda", "MVN": "#e2efda", "Concat": "#fdf3c0", "Eltwise": "#fdf3c0",
}  # fmt: skip
LEARNING = ("Convolution", "Deconvolution", "InnerProduct")
"""Types whose learning rates are shown, as Caffe's draw_net.py has them."""
RANKDIRS = ("TB", "BT", "LR", "RL")
"""Where data flows in a picture: TB is from top to bottom."""
DATA, LOSS, OTHER = "#d0ece7", "#f8cfcf", "#f2f2f2"


@dataclass(eq=False)
class Node:
    """One layer. `sources` and `uses` are the nodes before and behind it, in net order; `sizes` its tops' shapes.

    `shares`: "weights of" earlier layers whose parameters it shares by name, or empty. `rates`: what its weights and
    bias learn by, or empty.
    """

    name: str
    type: str
    sizes: tuple[str, ...]
    shares: str = ""
    rates: str = ""
    sources: list[Node] = field(default_factory=list)
    uses: list[Node] = field(default_factory=list)


def graph(layers: Sequence[LayerSpec], shapes: dict[str, tuple[int, ...]], rates: bool = False) -> list[Node]:
    """The layers as a graph without Splits; `shapes` may lack blobs. `rates`: with the lr_mult of LEARNING types."""
    writer: dict[str, Node] = {}
    owner: dict[str, str] = {}
    nodes = []
    for spec in layers:
        if spec.type == "Split":
            # Splits are ours and Caffe's, not the author's: who reads one reads what is in front of it
            writer.update(dict.fromkeys(spec.tops, writer[spec.bottoms[0]]))
            continue
        sizes = tuple("x".join(map(str, shapes[top])) or "scalar" for top in spec.tops if top in shapes)
        names = [owner.setdefault(param.name, spec.name) for param in spec.message.param if param.name]
        owners = printable(", ".join(dict.fromkeys(name for name in names if name != spec.name)))
        shares = f"weights of {owners}" if owners else ""
        node = Node(printable(spec.name), printable(spec.type), sizes, shares, _rates(spec) if rates else "")
        for bottom in spec.bottoms:
            source = writer[bottom]
            # one arrow, however often a layer reads another
            if source not in node.sources:
                node.sources.append(source)
                source.uses.append(node)
        writer.update(dict.fromkeys(spec.tops, node))
        nodes.append(node)
    return nodes


def _rates(spec: LayerSpec) -> str:
    if spec.type not in LEARNING:
        return ""
    given = [param.lr_mult for param in spec.message.param]
    return f"lr_mult {', '.join(f'{rate:g}' for rate in given + [1.0] * (2 - len(given)))}"


def text_tree(nodes: Sequence[Node]) -> str:
    """One line a layer: a chain straight down, branches indented, a layer that joins them behind the last one.

    Raises ForceregError for branches within branches, hundreds deep.
    """
    walk = _Walk({node: len(node.sources) for node in nodes})
    try:
        lines = list(walk.run([node for node in nodes if not node.sources], "", "", None))
    # one level of Python's stack, or more, for each branch within a branch
    except RecursionError:
        raise ForceregError("the net branches too deep for a text tree; draw it as .dot, .svg or .png") from None
    width = max((len(indent + node.name) for indent, node in lines), default=0)
    kinds = max((len(node.type) for node in nodes), default=0)
    text = ""
    for indent, node in lines:
        joined = f"  <- {', '.join(source.name for source in node.sources)}" if len(node.sources) > 1 else ""
        more = "".join(f"  {part}" for part in (node.shares, node.rates) if part)
        line = f"{indent + node.name:<{width}}  {node.type:<{kinds}}  {', '.join(node.sizes)}{joined}{more}"
        text += line.rstrip() + "\n"
    return text


class _Walk:
    """Depth first through a graph, so that every layer comes once, behind all of its sources."""

    def __init__(self, missing: dict[Node, int]) -> None:
        self.missing = missing  # of each node, how many sources have not been shown

    def run(
        self, ready: list[Node], first: str, rest: str, outer: list[Node] | None
    ) -> Generator[tuple[str, Node], None, set[Node]]:
        """(indent, layer) from `ready` on, `first` before the first; returns what was shown.

        A layer that joins this branch with another goes to `outer`, to be shown there.
        """
        inside: set[Node] = set()
        while ready:
            freed: list[Node] = []
            if len(ready) == 1:
                (node,) = ready
                yield first, node
                inside.add(node)
                freed += self._freed(node)
            else:
                for node in ready:
                    last = node is ready[-1]
                    branch = first + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
                    inside |= yield from self.run([node], *branch, freed)
            first, ready = rest, []
            for node in freed:
                (ready if outer is None or inside.issuperset(node.sources) else outer).append(node)
        return inside

    def _freed(self, node: Node) -> list[Node]:
        """The layers that `node` was the last source of."""
        for use in node.uses:
            self.missing[use] -= 1
        return [use for use in node.uses if not self.missing[use]]


def dot(nodes: Sequence[Node], title: str, rankdir: str = "TB") -> str:
    """The graph in graphviz's language; `rankdir`: one of RANKDIRS."""
    number = {node: f"n{index}" for index, node in enumerate(nodes)}
    lines = [
        "digraph net {",
        f"  graph [label={_quoted(title)} labelloc=t fontname=Helvetica rankdir={rankdir} nodesep=0.25 ranksep=0.3]",
        '  node [shape=box style="rounded,filled" fontname=Helvetica fontsize=10 color="#888888"]',
        '  edge [color="#666666" arrowsize=0.6]',
    ]
    for node in nodes:
        parts = filter(None, (node.name, node.type, *node.sizes, node.shares, node.rates))
        label = "\\n".join(escaped(part) for part in parts)
        lines.append(f'  {number[node]} [label="{label}" fillcolor="{_color(node)}"]')
    lines += [f"  {number[node]} -> {number[use]}" for node in nodes for use in node.uses]
    return "\n".join([*lines, "}", ""])


def has_graphviz() -> bool:
    """Whether graphviz's command `dot` is installed."""
    return shutil.which("dot") is not None


def picture(graph: str, kind: str) -> bytes:
    """The graph as graphviz renders it. Raises ForceregError."""
    done = subprocess.run(["dot", f"-T{kind}"], input=graph.encode(), capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").splitlines() or ["no reason given"])[0]
        raise ForceregError(f"graphviz's `dot -T{kind}` failed ({reason}); write .dot and look at it")
    return done.stdout


def _color(node: Node) -> str:
    if not node.sources:
        return DATA
    return LOSS if is_loss(node.type) or node.type == "Accuracy" else COLORS.get(node.type, OTHER)


def escaped(text: str) -> str:
    # graphviz reads &name; in a label as a character of HTML
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")


def _quoted(text: str) -> str:
    return f'"{escaped(text)}"'
