"""The text tree and the graph of a net."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.net.draw import Node, dot, graph, text_tree
from forcereg.net.load import net_file, net_spec, shape_net
from forcereg.system.shipped import configs_dir, shipped_configs

NETS = [file.path.as_posix() for file in shipped_configs() if file.kind == "net"]


def nodes_of(text: str) -> list[Node]:
    net = shape_net(text)
    return graph(net.spec.layers, net.shapes)


def tree(text: str) -> list[str]:
    return text_tree(nodes_of(text)).splitlines()


def layer(name: str, bottoms: str, kind: str = "Power") -> str:
    blobs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    shape = "input_param { shape { dim: 2 dim: 3 } }" if kind == "Input" else ""
    return f'layer {{ name: "{name}" type: "{kind}" {blobs} top: "{name}" {shape} }}\n'


X = layer("x", "", "Input")


def test_a_chain_goes_straight_down() -> None:
    assert tree(X + layer("a", "x", "ReLU") + layer("b", "a", "TanH")) == [
        "x  Input  2x3",
        "a  ReLU   2x3",
        "b  TanH   2x3",
    ]


def test_branches_and_their_join() -> None:
    text = X + layer("a", "x", "ReLU") + layer("b", "x", "TanH") + layer("c", "b", "ReLU") + layer("j", "ac", "Eltwise")
    assert tree(text + layer("z", "j", "ReLU")) == [
        "x     Input    2x3",
        "├─ a  ReLU     2x3",
        "└─ b  TanH     2x3",
        "   c  ReLU     2x3",
        "j     Eltwise  2x3  <- a, c",
        "z     ReLU     2x3",
    ]


def test_a_fork_inside_a_branch_joins_there() -> None:
    inner = layer("a", "x", "ReLU") + layer("b", "a", "ReLU") + layer("c", "a", "ReLU") + layer("i", "bc", "Eltwise")
    text = X + inner + layer("d", "i", "ReLU") + layer("e", "x", "ReLU") + layer("j", "de", "Eltwise")
    assert [line.split("  R")[0].split("  E")[0].rstrip() for line in tree(text)[1:]] == [
        "├─ a",
        "│  ├─ b",
        "│  └─ c",
        "│  i",
        "│  d",
        "└─ e",
        "j",
    ]


def test_a_shortcut_is_no_branch() -> None:
    text = X + layer("a", "x", "ReLU") + layer("b", "a", "ReLU") + layer("j", "xb", "Eltwise")
    assert [line[0] for line in tree(text)] == ["x", "a", "b", "j"]


@given(st.lists(st.sets(st.integers(0, 30), max_size=4), min_size=1, max_size=25))
def test_every_layer_once_and_behind_its_sources(wiring: list[set[int]]) -> None:
    nodes: list[Node] = []
    for index, wanted in enumerate(wiring):
        node = Node(f"n{index}", "T", ())
        node.sources = [nodes[i] for i in sorted({i % index for i in wanted})] if index else []
        for source in node.sources:
            source.uses.append(node)
        nodes.append(node)
    names = [next(word for word in line.split() if word.startswith("n")) for line in text_tree(nodes).splitlines()]
    assert sorted(names) == sorted(node.name for node in nodes)
    for node in nodes:
        assert all(names.index(source.name) < names.index(node.name) for source in node.sources)


@pytest.mark.parametrize("name", NETS)
def test_shipped_nets_can_be_drawn(name: str) -> None:
    spec = net_spec(net_file(configs_dir() / name), "TEST")
    nodes = graph(spec.layers, {})
    assert len(text_tree(nodes).splitlines()) == len(nodes) == sum(one.type != "Split" for one in spec.layers)
    text = dot(nodes, "t")
    assert text.count(" -> ") == sum(len(node.uses) for node in nodes)


def test_names_are_quoted_for_graphviz() -> None:
    text = dot([Node('a"b\\c', "T", ("2x3",))], 'the "net"')
    assert 'label="a\\"b\\\\c\\nT\\n2x3"' in text and '[label="the \\"net\\""' in text


def test_shared_weights_are_named() -> None:
    text = X
    for name in "ab":
        text += (
            f'layer {{ name: "{name}" type: "InnerProduct" bottom: "x" top: "{name}" param {{ name: "w" }} '
            "inner_product_param { num_output: 4 } }"
        )
    assert tree(text) == ["x     Input         2x3", "├─ a  InnerProduct  2x4", "└─ b  InnerProduct  2x4  weights of a"]
    assert 'label="b\\nInnerProduct\\n2x4\\nweights of a"' in dot(nodes_of(text), "n")


def test_rates_of_what_learns() -> None:
    text = X + (
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" param { lr_mult: 0.5 } '
        "inner_product_param { num_output: 4 } }"
    )
    net = shape_net(text)
    nodes = graph(net.spec.layers, net.shapes, rates=True)
    assert text_tree(nodes).splitlines() == ["x   Input         2x3", "ip  InnerProduct  2x4  lr_mult 0.5, 1"]
    assert "rankdir=LR" in dot(nodes, "n", "LR") and 'label="ip\\nInnerProduct\\n2x4\\nlr_mult 0.5, 1"' in dot(
        nodes, "n"
    )
