"""What layers and chains cost."""

from __future__ import annotations

import pytest

from forcereg.cost import chain_cost, dense_macs, lowrank_macs, lowrank_speedup

CONV3, CONV4, CONV5 = (384, 256, 3, 3, 1), (384, 192, 3, 3, 2), (256, 192, 3, 3, 2)
"""AlexNet's: outputs, channels of a group, kernel, groups."""


@pytest.mark.parametrize(
    ("layer", "rank", "speedup"),
    [
        pytest.param(CONV3, 184, 1.79, id="conv3-184"),
        pytest.param(CONV4, 201, 1.72, id="conv4-201"),
        pytest.param(CONV5, 146, 1.63, id="conv5-146"),
        pytest.param(CONV3, 124, 2.65, id="conv3-124"),
        pytest.param(CONV4, 106, 3.26, id="conv4-106"),
        pytest.param(CONV5, 129, 1.85, id="conv5-129"),
    ],
)
def test_the_papers_alexnet_table(layer: tuple[int, int, int, int, int], rank: int, speedup: float) -> None:
    """Wen et al., ICCV 2017; total ranks, odd ones too."""
    assert lowrank_speedup(*layer, rank=rank) == pytest.approx(speedup, abs=0.005)


def test_macs_of_a_pair_with_both_parts_grouped() -> None:
    assert dense_macs(384, 192, 3, 3) == 384 * 1728
    assert lowrank_macs(384, 192, 3, 3, groups=2, rank=106) == 106 * 1728 + 384 * 106 / 2


@pytest.mark.parametrize("layer", [CONV3, CONV4, CONV5], ids=["conv3", "conv4", "conv5"])
def test_the_speedup_falls_with_the_rank(layer: tuple[int, int, int, int, int]) -> None:
    speedups = [lowrank_speedup(*layer, rank=rank) for rank in range(1, layer[0] + 1)]
    assert speedups == sorted(speedups, reverse=True) and speedups[-1] < 1 < speedups[0]


def test_the_model_is_what_a_chain_costs() -> None:
    """As `decompose` counts it: the values of each part times its places."""
    numels, places = [106 * 1728, 384 * 53], [169, 169]
    dense = chain_cost([384 * 1728], [169])
    chain = chain_cost(numels, places, bias=384)
    assert dense.macs is not None and chain.macs is not None
    assert dense.macs / chain.macs == pytest.approx(lowrank_speedup(*CONV4, rank=106), rel=1e-12)
    assert chain.params == sum(numels) + 384
    assert chain_cost(numels, [169, None]).macs is None


def test_it_comes_with_the_package() -> None:
    import forcereg

    assert forcereg.cost.lowrank_speedup(*CONV4, rank=201) == lowrank_speedup(*CONV4, rank=201)
