"""The innermost loop of the direct sparse convolution, in LLVM's terms, which Numba compiles into what calls it.

By hand, because of a loop over arrays no compiler here keeps several vectors of sums in registers. Needs Numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

BYTES = 64 if binding.get_host_cpu_features().get("avx512f") else 32
"""Of one vector."""
MOST = 12
"""Vectors of sums at a time: with a weight and an input they fill 14 of the 16 registers that every AVX has."""
INDEX = ir.IntType(64)


@intrinsic
def add_up(
    typing: Any, sums: Any, at: Any, x: Any, base: Any, values: Any, offsets: Any, first: Any, last: Any, vectors: Any
) -> Any:
    """sums[at:][:n] += values[j] * x[base + offsets[j]:][:n] for j from `first` to `last`, `vectors` full ones at once.

    Arrays have one axis and are contiguous; nothing checks that indices are within. `vectors` is a constant.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    count = vectors.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        kinds = dict(zip(("sums", "at", "x", "base", "values", "offsets"), signature.args, strict=False))
        given = dict(zip((*kinds, "first", "last"), args, strict=False))
        start = {
            name: context.make_array(kinds[name])(context, builder, given[name]).data
            for name in ("sums", "x", "values", "offsets")
        }
        loop = _Loop(builder, context.get_data_type(kinds["sums"].dtype), kinds["sums"].dtype.bitwidth // 8, count)
        held = loop.places(loop.at(start["sums"], given["at"]))
        loop.run(
            held, loop.at(start["x"], given["base"]), start["values"], start["offsets"], given["first"], given["last"]
        )
        return context.get_dummy_value()

    return types.void(sums, at, x, base, values, offsets, first, last, vectors), generate


class _Loop:
    """Writes the loop, for vectors of `element`s of `size` bytes, `count` at a time."""

    def __init__(self, builder: Any, element: Any, size: int, count: int) -> None:
        self._build, self._size, self._count, self._lanes = builder, size, count, BYTES // size
        self._vector = ir.VectorType(element, self._lanes)

    def at(self, start: Any, index: Any) -> Any:
        """The address of an element."""
        return self._build.gep(start, [index])

    def places(self, start: Any) -> list[Any]:
        """The addresses of `count` vectors one behind the other."""
        steps = (self.at(start, INDEX(k * self._lanes)) for k in range(self._count))
        return [self._build.bitcast(step, self._vector.as_pointer()) for step in steps]

    def run(self, held: Sequence[Any], x: Any, values: Any, offsets: Any, first: Any, last: Any) -> None:
        """Adds to the vectors at `held` the products of values and what lies at their offsets from x."""
        build = self._build
        before, begun = build.block, [self._load(place) for place in held]
        loop, done = build.append_basic_block("loop"), build.append_basic_block("done")
        build.cbranch(build.icmp_signed("<", first, last), loop, done)

        build.position_at_end(loop)
        j, sums = build.phi(INDEX), [build.phi(self._vector) for _ in held]
        weight = self._spread(build.load(self.at(values, j)))
        offset = build.sext(build.load(self.at(offsets, j)), INDEX)
        # one multiply-add each, which reads the input from memory, at any alignment
        added = [
            self._fused(weight, self._load(place), sum)
            for place, sum in zip(self.places(self.at(x, offset)), sums, strict=True)
        ]
        after = build.add(j, INDEX(1))
        build.cbranch(build.icmp_signed("<", after, last), loop, done)
        for phi, old, new in zip((j, *sums), (first, *begun), (after, *added), strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, loop)

        build.position_at_end(done)
        ends = [build.phi(self._vector) for _ in held]
        for end, old, new in zip(ends, begun, added, strict=True):
            end.add_incoming(old, before)
            end.add_incoming(new, loop)
        for end, place in zip(ends, held, strict=True):
            build.store(end, place, align=self._size)

    def _load(self, place: Any) -> Any:
        return self._build.load(place, align=self._size)

    def _spread(self, value: Any) -> Any:
        """A vector of one value."""
        nothing = self._vector(ir.Undefined)
        first = self._build.insert_element(nothing, value, ir.IntType(32)(0))
        everywhere = ir.VectorType(ir.IntType(32), self._lanes)([0] * self._lanes)
        return self._build.shuffle_vector(first, nothing, everywhere)

    def _fused(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c with one rounding."""
        # "contract" permits that, and no other change of the order in which is added
        return self._build.fadd(self._build.fmul(a, b, flags=["contract"]), c, flags=["contract"])
