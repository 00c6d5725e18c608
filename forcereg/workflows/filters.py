"""The filters of a layer as pictures: `forcereg filters`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forcereg.errors import UsageError, check_share
from forcereg.report.plot import CSV, FILES, picture_kind
from forcereg.study.filters.angles import Angles
from forcereg.study.filters.bank import Bank, banks
from forcereg.study.filters.basis import Basis
from forcereg.study.filters.images import Images
from forcereg.study.filters.plane import Plane
from forcereg.study.filters.view import View
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_bytes, write_text
from forcereg.system.paths import StrPath, listed


@dataclass(frozen=True)
class Filters:
    """A layer's filters in one or several snapshots, and what there is to see of them.

    `banks`: the filters, `weight` (N, C, *kernel), float64, of each snapshot. `view`: an `Images`, `Basis`, `Plane` or
    `Angles` with the numbers behind the picture; its `.rows()` are those of the CSV file, its `.figure()` is
    matplotlib's.

    >>> tuple(forcereg.filters("net_iter_20.caffemodel.h5", layer="conv1").banks[0].weight.shape)
    (8, 1, 3, 3)
    """

    banks: tuple[Bank, ...] = field(repr=False)
    view: View = field(repr=False)

    @checked
    def write(self, path: StrPath) -> None:
        """Writes the picture as .png, .svg or .pdf, or its numbers as .csv.

        Raises UsageError for another ending, ForceregError without matplotlib and if the system refuses.
        """
        kind = picture_kind(path, FILES)
        if kind == CSV:
            write_text(Path(path), self.view.csv())
        else:
            write_bytes(Path(path), self.view.picture(kind))


@checked
def filters(
    snapshots: StrPath | Sequence[StrPath],
    *,
    layer: str,
    basis: bool = False,
    lda: bool = False,
    angles: bool = False,
    error: float = 0.05,
    clusters: int = 4,
    labels: str | Sequence[str] | None = None,
    model: StrPath | None = None,
    seed: int = 0,
    observer: Observer | None = None,
) -> Filters:
    """A layer's filters in one or several snapshots: as images, or what Wen et al. (ICCV 2017) show of theirs.

    `snapshots`: .caffemodel files, also as .h5, or their solver states; those of one run (X_iter_N) are put in the
    order of their iterations, others as given. `layer`: the rows of its weight, (N, C, *kernel) or (N, K), are the
    filters; of a decomposed net also the layer that a chain stands for. `labels`: the snapshots' names, a list or
    "a,b"; None: what their paths differ in. `model`: the net, None for the one that the snapshot holds; where there is
    none, a layer has one group. At most one of:

    - `basis` (figure 1 of the paper): the principal filters by falling energy, those framed that hold all but `error`,
      0 to 1, of the filters' squared norm; uncentred, group by group, as `decompose --method pca` has them.
    - `lda` (figure 2): the filters' directions in a plane by linear discriminant analysis (scikit-learn: the extra
      `lowrank`). Which classes are told apart is our choice: of several snapshots the snapshots; of one `clusters`
      of its filters, which k-means finds on the unit sphere from `seed`. Of two classes there is one discriminant; the
      other axis is the direction of most spread beside it.
    - `angles` (figure 3): the distribution of the angles, 0 to 180 degrees, of all pairs of filters of a group.

    Without any: the filters as images. Three channels are drawn as red, green and blue, in the data's order (of Caffe's
    images the first is blue), any other number as grey tiles, a channel each. Zeros are mid-grey.

    Raises UsageError for what doesn't go together, ForceregError for files that can't be read, layers that aren't there
    or have no filters, and weights that aren't finite.

    >>> found = forcereg.filters("net_iter_20.caffemodel.h5", layer="conv1", basis=True, error=0.2)
    >>> len(found.view.found[0].shares), sum(found.view.found[0].shares) > 0.99
    (8, True)
    >>> found.write("basis.csv")
    >>> found.view.csv().splitlines()[0]
    'snapshot,filter,share,needed'
    """
    check_share("the error bound", error)
    if len(asked := [name for name, on in {"basis": basis, "lda": lda, "angles": angles}.items() if on]) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} are both given; use one")
    found = banks(listed(snapshots), layer, labels, model, Tell(observer))
    if basis:
        view: View = Basis.of(layer, found, error)
    elif lda:
        view = Plane.of(layer, found, clusters, seed)
    elif angles:
        view = Angles.of(layer, found)
    else:
        view = Images(layer, tuple(found))
    return Filters(tuple(found), view)
