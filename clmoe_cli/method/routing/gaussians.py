"""The gate: classes as Gaussians with regularised covariances (method section 7; Friedman 1989).

Class c of the fixed features x has the density of a Gaussian with mean μ_c and covariance

    (1 − α) B + α Σ_c,     B = Σ̄ + κ (d / n) D.

Σ̄ is the mean covariance within the classes of all tasks, n the images that it rests on, d the number of features. D is
the ridge: the mean variance times the identity, or the diagonal of Σ̄. Σ_c is the class's own covariance, K leading
directions of it. α = 0 is the linear discriminant, α near 1 is a Gaussian of the class's own.

Every task keeps its own statistics and nothing of other tasks: means, own directions, and the covariance within its
classes as R leading directions and a diagonal for the rest. Σ̄ is their sum, made anew from the tasks that are there, in
an order that depends on the statistics alone. So the order of learning does not matter, and a store from which a
task was pruned is the store that never saw it.

α, κ and the sharpness τ of the posterior are chosen by held-out images. When a task is learned, images that were left
out of a fit of its own classes are answered among them, and the log-probabilities of their labels are summed for every
choice of a grid. The sums are the task's own as well, and add up over tasks. A weak prior decides where images are few,
or where every choice is right. Answering among all known tasks would leave in a task what the tasks before it were.
Among few classes a class's own covariance tells more than among many: of a large α that is best within tasks, half is
used.

Where the classes of a task differ much in size, held-out images say as well whether their shares tell anything. If so
a class counts within its task by its share, or the square root of it. Between tasks shares tell nothing, since a task
is learned from as many images as somebody had: the classes of a task count as 1 on the average.

B differs between one task's fit and all tasks' gate, and with it the size of log-densities. So τ is scaled by how far
the class means within a task lie apart in the one and in the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clmoe_cli.method import privacy
from clmoe_cli.method.reproducible import at_least, settled
from clmoe_cli.method.routing.calibration import LOWER, MINIMUM
from clmoe_cli.method.routing.mahalanobis import leading
from clmoe_cli.method.routing.rounding import rounded
from clmoe_cli.method.routing.subspaces import BOUND, FOLDS, QUANTILES, SHORTLIST, Compared, Statistics, Subspaces

OWN = 64
"""Directions of a class's own covariance, at most; a class has one for every four of its images."""
SHARED = 192
"""Directions of the covariance within a task's classes, at least; a tenth of the features where that is more."""
ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)
KAPPAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
RIDGES = 2
"""Even (the mean variance) and, where columns have very different units, by column (the diagonal)."""
SHARPNESSES = tuple(2.0 ** (-k / 2) for k in range(21))
GRID = (RIDGES * len(KAPPAS), len(ALPHAS), len(SHARPNESSES))
"""Choices of ridge and κ, α and sharpness: the shape of a task's tallies."""
POWERS = (0.0, 0.5, 1.0)
"""Powers of a class's share that it may count by."""
UNLIKE = 2.0
"""Shares are tried where the largest class of a task has at least so many times the images of the smallest."""
TELLING = 2.0
"""Nats by which held-out images have to prefer a power to the one before it.

On held-out rows of tables, embeddings and signs with classes of very different sizes, shares by themselves cost up to
4 points and gain up to 4.5; chosen so they cost none.
"""
DEFAULT = (0.2, 0.5, 2.0**-3)
"""α, κ and sharpness that the prior prefers."""
TRUSTED = 0.1
"""Beyond it half of the α that is likeliest within tasks is used: among all classes so large a one is right less often.

On held-out training images of two sets of photographs, traffic signs and two sets of embeddings that gives 0.1 points
less to 0.4 points more; half of any α gives 0.4 less to 0.4 more.
"""
PRIOR = (2.0, 1.0, 0.1)
"""Nats that a factor of two away from each of them costs, squared in the number of such factors.

Where every choice is right, as of digits, the prior decides alone.
"""
NEVER = -1e12
"""Tally of a ridge that is not offered."""
NONE = 0.01
"""What α = 0 counts as in the prior."""
HELD_OUT = 400
"""Left-out images that are enough for the choice: folds are answered until there are so many."""
ANSWERED = 1000
"""Left-out images that are answered of a fold, at most."""
FINE, MANY = 10, 300
"""Folds where a class has fewer than so many images on the average: a fit of four fifths of few images is wider than
one of all, and what is left out of it looks farther away than new images are."""
TOGETHER = 10
"""Images of a class that lie together are left out together: else what is left out are frames of what is learned."""
NARROW = 128
"""Numbers of an image that tell which images lie together."""
TURNS = 4
"""Steps of a power iteration towards the direction in which a group varies most."""
STEEP = 1e5
"""Variance of a direction, in units of the ridge, beyond which float32 would lose what is left of it."""
WORST = 4.0
"""Nats that a left-out image costs at most: a column that never varied makes some images all but impossible."""
OUTSIDE = 0.03
"""Ridge of a class's own covariance when new images are told from its own, in mean variances."""
UNEVEN = 30.0
"""Columns are brought to one unit where the largest deviations are so many times the smallest."""
TINY = 1e-12
SAME = 1e-10
"""Squared distance, in squared lengths of what is compared, below which the difference is float32's rounding."""


@dataclass(frozen=True)
class Gaussians(Subspaces):
    """The statistics of one task's C classes in d features, as stored.

    Besides those of :class:`Subspaces`: ``variances`` [C, K] of the directions; ``units`` [d]: what the features are
    divided by before directions are taken; ``shared`` [d, R] half precision, ``shared_variances`` [R] and
    ``shared_rest`` [d]: the covariance within the task's classes, in those units; ``tallies`` [P, A, S] float64:
    summed log-probabilities of left-out images for every ridge and κ, α, and sharpness; ``apart`` [P] float64: summed
    squared distances of the class means from their middle under the task's own B of each ridge and κ. ``near`` [C, Q]
    float32: quantiles of the squared distances of a class's own left-out images from its mean; no columns where
    features have one length, so that nothing is nearer than others without being more like them. ``best`` [Q] float64:
    quantiles of the largest of the classes' p-values over left-out images of the task, empty in stores of before.
    ``priors`` [C] float64: what is added to the log-likelihood of each class, 0 where shares tell nothing.
    """

    variances: Tensor
    units: Tensor
    shared: Tensor
    shared_variances: Tensor
    shared_rest: Tensor
    tallies: Tensor
    apart: Tensor
    near: Tensor
    best: Tensor
    priors: Tensor

    def distances(self, values: Tensor, of: int) -> Tensor:
        """Squared distances [N] of features [N, d] from class ``of`` by the class's own covariance alone; settled."""
        variance = _mean_variance(self.shared_variances, self.shared_rest)
        own = self.means[of], self.directions[of], self.variances[of]
        return settled(_own_distances(values.double(), own, self.units, variance))

    def usual(self, values: Tensor, distances: Tensor, of: int) -> Tensor:
        """p-values [N] of features [N, d], which have these distances [N] from class ``of``.

        Of plain vectors both tails count: rows in a smaller unit may lie nearer to the mean of a class than any of its
        own. The lower tail has ``LOWER`` of the false alarms, so that a class with less than 1 / (``LOWER`` α) images
        has none below α: about 400 at 0.05, 2,000 at 0.01.
        """
        away = settled(_from_mean(values.double(), self.means[of], self.units)) if self.near.shape[1] else distances
        return self._usual(distances, away, of)

    def _usual(self, distances: Tensor, away: Tensor, of: int) -> Tensor:
        """The same; ``away`` [N]: squared distances from the class's mean."""
        found = self.p_values(distances, of)
        if not self.near.shape[1]:
            return found
        count = float(self.counts[of])
        # At most as far is at least as far of the negatives, so that equal up to rounding counts on both sides.
        nearer = at_least(-self.near[of].flip(0), -away) / self.near.shape[1]
        lower = (nearer * count + 1) / (count + 1)
        return torch.minimum(found / (1 - LOWER), lower / LOWER).clamp(max=1.0)

    def answered(self, values: Tensor, at: Tensor, distances: Tensor | None = None) -> Tensor:
        """p-values [N] of features [N, d] that are answered with the classes ``at`` [N]; NaN where a class has none.

        The share of the task's left-out images whose largest p-value over its classes is no larger than it is here: the
        largest of several p-values is none by itself, and of classes that resemble each other no image would look new.
        In stores of before it is the class's own.
        """
        if not len(self.best):
            return super().answered(values, at, distances)
        distances = self.all_distances(values) if distances is None else distances
        p = torch.stack([self.usual(values, each, c) for c, each in enumerate(distances.unbind(dim=1))], dim=1)
        # A class of few images has no p-values, and an image that is taken for it cannot be judged.
        judged = ~p.gather(1, at[:, None])[:, 0].isnan()
        largest = p.nan_to_num(0.0).max(dim=1).values
        count = float(self.counts[self.counts >= MINIMUM].sum())
        # At most as much is at least as much of the negatives.
        share = at_least(-self.best.flip(0), -largest) / len(self.best)
        return ((share * count + 1) / (count + 1)).where(judged, torch.tensor(math.nan, dtype=p.dtype))

    def covariance(self) -> Covariance:
        """The covariance within the task's classes."""
        shared = self.shared, self.shared_variances, self.shared_rest
        return Covariance.of(shared, self.units, float(self.counts.sum()))


def _own_distances(values: Tensor, own: tuple[Tensor, Tensor, Tensor], units: Tensor, variance: float) -> Tensor:
    """Squared distances [N] of values [N, d] from a class: mean [d], directions [d, K] and their variances [K].

    What lies outside the class's directions counts in full; inside, a direction counts the less the more the class
    varies along it. ``variance``: the mean variance of a feature within the task's classes.
    """
    mean, directions, variances = (value.to(values.dtype) for value in own)
    scale = units.to(values.dtype)
    centred = (values - mean) / scale
    inside = (centred @ directions).square()
    ridge = OUTSIDE * variance
    outside = (centred.square().sum(dim=1) - inside.sum(dim=1)).clamp_min(0)
    return _of_rounding(outside + inside @ (ridge / (variances + ridge).clamp_min(TINY)), values, mean, scale)


def _from_mean(values: Tensor, mean: Tensor, units: Tensor) -> Tensor:
    """Squared distances [N] of values [N, d] from a class's mean [d], in ``units`` [d]."""
    mean, scale = mean.to(values.dtype), units.to(values.dtype)
    return _of_rounding(((values - mean) / scale).square().sum(dim=1), values, mean, scale)


def _of_rounding(distances: Tensor, values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Squared distances [N] with 0 for those that rounding alone explains: a class of equal images has no others."""
    length = (values / scale).square().sum(dim=1) + (mean / scale).square().sum()
    return distances.where(distances > SAME * length, 0.0)


def _mean_variance(variances: Tensor, rest: Tensor) -> float:
    return float(variances.double().sum() + rest.double().sum()) / len(rest)


@dataclass(frozen=True)
class Fold:
    """A fit of some of a task's images.

    Means [C, d], own directions [C, d, K] and their variances [C, K]; the covariance within the classes (directions
    [d, R], variances [R], rest [d]), empty where it was not asked for; ``variance``, the mean variance within classes;
    how many images each class has, [C].
    """

    means: Tensor
    directions: Tensor
    variances: Tensor
    shared: tuple[Tensor, ...]
    variance: float
    counts: Tensor

    def noisy(self, noise: Tensor) -> Fold:
        """The same with noise [C, d] on the means."""
        return replace(self, means=(self.means.double() + noise).float())


def folds(y: Tensor, values: Tensor | None = None, count: int = FOLDS) -> Tensor:
    """One of so many folds [n] for each image of class y [n]: each class is spread evenly, neighbours together.

    Neighbours are images that follow each other, as frames of a film do, or whose features ``values`` [n, d] lie
    together: frames whose order is lost.
    """
    order = torch.argsort(y, stable=True) if values is None else _neighbouring(values, y)
    counts = torch.bincount(y)
    first = torch.cumsum(counts, 0) - counts
    position = torch.empty_like(y)
    position[order] = torch.arange(len(y)) - first[y[order]]
    if values is None:
        return position * count // counts[y]
    # Groups of a class are dealt out in turn, so that what a fold leaves out is no corner of the class.
    groups = (counts + TOGETHER - 1).clamp_min(TOGETHER * count) // TOGETHER
    return (position * groups[y] // counts[y]) % count


def _neighbouring(values: Tensor, y: Tensor) -> Tensor:
    """Positions [n] of images with features [n, d]: class by class, those that lie together next to each other.

    Classes are halved along the direction in which they vary most, the halves again, down to ``TOGETHER`` images. All
    parts of all classes at once.
    """
    x, part = _narrowed(values), y
    order = torch.argsort(y, stable=True)
    while True:
        part = torch.unique(part, return_inverse=True)[1]
        sizes = torch.bincount(part)
        if int(sizes.max()) <= TOGETHER:
            return order
        first = torch.cumsum(sizes, 0) - sizes
        centred = x - (_sums(x, part, len(sizes)) / sizes[:, None])[part]
        # From the image farthest from the middle on, towards the leading direction.
        far = torch.argsort(settled(centred.square().sum(dim=1)), stable=True, descending=True)
        way = F.normalize(centred[far[torch.argsort(part[far], stable=True)][first]], dim=1)
        for _ in range(TURNS):
            along = (centred * way[part]).sum(dim=1)
            way = F.normalize(_sums(centred * along[:, None], part, len(sizes)), dim=1)
        large = sizes[part] > TOGETHER
        along = settled((centred * way[part]).sum(dim=1)).where(large, 0.0)
        order = order[torch.argsort(along[order], stable=True)]
        order = order[torch.argsort(part[order], stable=True)]
        rank = torch.empty_like(part)
        rank[order] = torch.arange(len(part)) - first[part[order]]
        part = 2 * part + ((2 * rank >= sizes[part]) & large).long()


def _narrowed(values: Tensor) -> Tensor:
    """Features [n, d] along ``NARROW`` fixed random directions, which keep distances to about a tenth (Johnson &
    Lindenstrauss 1984), float32; of no more features than that themselves."""
    d = values.shape[1]
    if d <= NARROW:
        return values.float()
    return values.float() @ torch.randn(d, NARROW, generator=torch.Generator().manual_seed(0))


def _sums(values: Tensor, part: Tensor, parts: int) -> Tensor:
    """Sums [parts, d] of the rows of values [n, d] that belong to each part [n]."""
    return torch.zeros(parts, values.shape[1], dtype=values.dtype).index_add_(0, part, values)


def fit_part(
    values: Tensor, y: Tensor, classes: int, units: Tensor, shared: bool = True, whole: Tensor | None = None
) -> Fold:
    """Fits features [n, d] (any float type) of images with class y [n]; a class without images has a mean of zero.

    ``shared``: whether the covariance within the classes is wanted. ``whole`` [C]: how many images the classes have of
    which these are a part; the part has as many directions as the whole, so that distances from both are alike.
    """
    d = values.shape[1]
    counts = torch.bincount(y, minlength=classes)
    sums = torch.zeros(classes, d, dtype=values.dtype).index_add_(0, y, values)
    means = (sums / counts.clamp_min(1)[:, None]).float()
    of = counts if whole is None else whole
    ranks = [
        min(privacy.rank(n, min(OWN, d)), max(0, m - 1)) for n, m in zip(of.tolist(), counts.tolist(), strict=True)
    ]
    widest = max(1, *ranks)
    directions = torch.zeros(classes, d, widest, dtype=torch.float16)
    variances = torch.zeros(classes, widest)
    scaled = (values - means.to(values.dtype)[y]) / units.to(values.dtype)
    for c, rank in enumerate(ranks):
        if rank:
            found, part = _leading(scaled[y == c], rank)
            directions[c, :, :rank], variances[c, :rank] = found, part
    squares = scaled.square().mean(dim=0)
    variance = float(squares.double().mean())
    freedom = len(values) - int((counts > 0).sum())
    if freedom == 0:
        # One image a class tells nothing of how a class varies: by as much as classes differ, so that nothing is sure.
        variance = float(((values - values.mean(dim=0)) / units.to(values.dtype)).double().square().mean())
    if not shared:
        return Fold(means, directions, variances, (), variance, counts)
    rank = privacy.rank(freedom, min(max(SHARED, d // 10), d))
    if freedom < privacy.LEAST:
        # The variances of so few differences, column by column, would be these differences but for their signs.
        squares = torch.full_like(squares, variance)
    found, part = _leading(scaled, rank) if rank else (torch.zeros(d, 1).half(), torch.zeros(1))
    rest = squares - (found.to(scaled.dtype).square() * part.to(scaled.dtype)).sum(dim=1)
    return Fold(means, directions, variances, (found, part, rest.clamp_min(0).float()), variance, counts)


def _leading(scaled: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading directions [d, rank] as they are stored, and variances [rank], of centred features [n, d].

    Of few features all of them are wanted, and the decomposition is exact.
    """
    values, vectors = leading(scaled, rank, EXACT, PASSES)
    variances = (values / len(scaled)).clamp_min(0)
    rest = float(scaled.square().sum(dim=1).double().mean()) - float(variances.double().sum())
    return rounded(vectors, variances, rest / scaled.shape[1]), variances.float()


EXACT = 600
"""Up to so many features a covariance is decomposed exactly; beyond, by a randomised decomposition in ``PASSES``."""
PASSES = 2


def fit(values: Tensor, y: Tensor, classes: int, even: bool, noise: Tensor) -> Gaussians:
    """The statistics of one task from the features [n, d] of its images, with class y [n] in 0 to ``classes`` − 1.

    ``even``: the features have one unit, so that the even ridge is the only one and no column is scaled. Every class
    has an image. ``noise`` [C, d]: what is added to the means of classes of few images (:func:`privacy.noise`), those
    of the folds included, so that what is chosen and reported is what will answer. Folds are taken in the images'
    order, not by what training has held out: that is drawn by the task's number, and the statistics of a task are the
    same whatever it was learned after.
    """
    both_tails, units = not even, torch.ones(values.shape[1]) if even else _units(values, y, classes)
    even = bool((units == 1).all())
    whole = fit_part(values, y, classes, units).noisy(noise)
    counts = torch.bincount(y, minlength=classes)
    powers = POWERS if int(counts.max()) >= UNLIKE * int(counts.min()) else POWERS[:1]
    grids, apart = torch.zeros(len(powers), *GRID, dtype=torch.float64), torch.zeros(GRID[0], dtype=torch.float64)
    distances = torch.full((len(y), classes), math.nan, dtype=torch.float64)
    away = distances.clone()
    answered = 0
    # Choices are tried on images of which no neighbour, as a frame of the same sign, is in the fit. Distances are those
    # of new images, which may have neighbours.
    fine = FOLDS if len(y) >= MANY * classes else FINE
    for fold, chooses in ((folds(y, values / units), True), (folds(y, count=fine), False)):
        for i in range(int(fold.max()) + 1):
            out, measures = fold == i, not chooses
            rest = ~out
            known = torch.bincount(y[rest], minlength=classes) > 0
            out &= known[y]
            if not bool(out.any()) or not bool(rest.any()):
                continue
            # Of one image a class there is no covariance to try choices on.
            asked = chooses and answered < HELD_OUT and 1 < int(known.sum()) < int(rest.sum())
            if not (asked or measures):
                continue
            part = fit_part(values[rest], y[rest], classes, units, asked, counts).noisy(noise)
            few = _evenly(out, ANSWERED)
            for c in known.nonzero()[:, 0].tolist() if measures else ():
                # All images of the class itself, and some of the others'.
                here = (out & (y == c)) | few
                own = part.means[c], part.directions[c], part.variances[c]
                distances[here, c] = settled(_own_distances(values[here].double(), own, units, part.variance))
                if both_tails:
                    away[here, c] = settled(_from_mean(values[here].double(), part.means[c], units))
            if asked:
                some = few.nonzero()[:, 0]
                found, between = tally(part, units, values[some], y[some], known, even, powers)
                # Log-probabilities add up; distances are those of one fit, the mean over the folds that were answered.
                grids, apart, answered = grids + found, apart + between * len(some), answered + len(some)
    # One vote a task, also of one that left no image out; infinity has no place in a store.
    grids[:, len(KAPPAS) :] += NEVER * even
    grids[:, : len(KAPPAS)] += NEVER * (not even)
    chosen = _telling(grids)
    own_distances, own_away = (each.gather(1, y[:, None])[:, 0] for each in (distances, away))
    shared, shared_variances, shared_rest = whole.shared
    fitted = Gaussians(
        means=whole.means,
        directions=whole.directions,
        quantiles=_quantiles(own_distances, y, classes),
        counts=whole.counts.double(),
        variances=whole.variances,
        units=units,
        shared=shared,
        shared_variances=shared_variances,
        shared_rest=shared_rest,
        tallies=grids[chosen],
        apart=apart / max(1, answered),
        near=_quantiles(own_away, y, classes) if both_tails else torch.zeros(classes, 0),
        best=torch.zeros(0, dtype=torch.float64),
        priors=powers[chosen] * log_shares(counts),
    )
    return replace(fitted, best=_best(fitted, distances, away, y))


def log_shares(counts: Tensor) -> Tensor:
    """Logarithms [C] float64 of the shares of classes with ``counts`` [C] images, in mean shares; −∞ without images."""
    return (counts.double() / counts.double().mean()).log()


def _telling(grids: Tensor) -> int:
    """Position of the power of shares that left-out images prefer, by the tallies [W, P, A, S] of each."""
    likeliest = (grids - _costs()).flatten(1).amax(dim=1).tolist()
    found = 0
    for i, likely in enumerate(likeliest):
        if likely > likeliest[found] + TELLING:
            found = i
    return found


def _best(found: Gaussians, distances: Tensor, away: Tensor, y: Tensor) -> Tensor:
    """Quantiles [Q] float64 of the largest p-value of left-out images of class y [n]; none where no image has one.

    ``distances`` and ``away`` [n, C], NaN where they were not taken.
    """
    classes = distances.shape[1]
    p = torch.stack([found._usual(distances[:, c], away[:, c], c) for c in range(classes)], dim=1)
    p = p.where(~distances.isnan(), torch.tensor(math.nan, dtype=p.dtype))
    # Of a fold's images that were compared with all classes, those whose own class has p-values.
    compared = (~distances.isnan()).sum(dim=1) == (~distances.isnan()).sum(dim=1).max()
    judged = compared & ~p.gather(1, y[:, None])[:, 0].isnan()
    if not bool(judged.any()):
        return torch.zeros(0, dtype=torch.float64)
    largest = p[judged].nan_to_num(0.0).max(dim=1).values
    return largest.quantile(torch.linspace(0, 1, QUANTILES, dtype=torch.float64), interpolation="higher")


def _evenly(chosen: Tensor, most: int) -> Tensor:
    """At most so many of the ``chosen`` [n], evenly spaced, as a mask."""
    found, at = torch.zeros_like(chosen), chosen.nonzero()[:, 0]
    found[at[torch.linspace(0, len(at) - 1, min(len(at), most)).round().long()]] = True
    return found


def _quantiles(distances: Tensor, y: Tensor, classes: int) -> Tensor:
    """Evenly spaced quantiles [C, Q] float32 of the distances [n] of each class's images, NaN left out."""
    steps, found = torch.linspace(0, 1, QUANTILES, dtype=torch.float64), []
    for c in range(classes):
        known = distances[(y == c) & ~distances.isnan()]
        # A class of one image has no other to be left out of; it has no p-values either.
        found.append((known if len(known) else torch.zeros(1, dtype=torch.float64)).quantile(steps).float())
    return torch.stack(found)


def without(whole: Gaussians, part: Fold) -> Gaussians:
    """The statistics of a task as some of its images give them; quantiles and tallies stay."""
    shared = dict(zip(("shared", "shared_variances", "shared_rest"), part.shared, strict=True))
    return replace(
        whole, means=part.means, directions=part.directions, variances=part.variances,
        counts=part.counts.double(), **shared,
    )  # fmt: skip


def _units(values: Tensor, y: Tensor, classes: int) -> Tensor:
    """What columns are divided by, [d]: their deviations within classes where these differ much, else 1."""
    counts = torch.bincount(y, minlength=classes)
    if len(y) - int((counts > 0).sum()) < privacy.LEAST:
        # Too few differences within classes: those between them count as well, or there is one unit.
        y, classes, counts = torch.zeros_like(y), 1, torch.tensor([len(y)])
        if len(y) < privacy.LEAST:
            return torch.ones(values.shape[1])
    sums = torch.zeros(classes, values.shape[1], dtype=torch.float64).index_add_(0, y, values.double())
    means = sums / counts.clamp_min(1)[:, None]
    deviation = (values.double() - means[y]).square().mean(dim=0).sqrt()
    if one_unit(deviation):
        return torch.ones(values.shape[1])
    return deviation.where(deviation > TINY * deviation.max(), 1.0).float()


def one_unit(deviation: Tensor) -> bool:
    """Whether columns that vary with these deviations [d] may have one unit; those that never vary do not count."""
    some = deviation[deviation > TINY * deviation.max()]
    return not len(some) or float(some.quantile(0.95) / some.quantile(0.05)) < UNEVEN


def tally(
    part: Fold, units: Tensor, values: Tensor, y: Tensor, known: Tensor, even: bool, powers: Sequence[float] = (0.0,)
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities [W, P, A, S] of the labels y [m] of left-out images, among the ``known`` classes [C].

    With them how far these classes lie apart, [P]. ``even``: only the even ridge is tried, else only that by column.
    ``powers`` [W]: of the classes' shares that they count by.
    """
    grid, apart = torch.zeros(len(powers), *GRID, dtype=torch.float64), torch.zeros(GRID[0], dtype=torch.float64)
    classes = known.nonzero()[:, 0]
    target = (classes == y[:, None]).long().argmax(dim=1)
    shares = log_shares(part.counts[classes])
    centre = part.means[classes].double().mean(dim=0)
    own = part.directions[classes].double() * units.double()[:, None] * part.variances[classes].double().sqrt()[:, None]
    covariance = Covariance.of(part.shared, units, float(part.counts.sum()))
    for p in range(RIDGES * len(KAPPAS)):
        if even == (p >= len(KAPPAS)):
            continue
        spread, reach = covariance.regular(p, part.means[classes])
        x, means = (values.double() - centre) / spread, (part.means[classes].double() - centre) / spread
        y, weights = x - (x @ reach) @ reach.T, means - (means @ reach) @ reach.T
        squares = (x * y).sum(dim=1)
        apart[p] = (weights * means).sum() - (weights.mean(dim=0) @ means.mean(dim=0)) * len(means)
        found = torch.empty(len(ALPHAS), len(values), len(classes), dtype=torch.float64)
        for c in range(len(classes)):
            wide = own[c] / spread[:, None]
            through = wide.T @ reach
            gamma, turn = torch.linalg.eigh(wide.T @ wide - through @ through.T)
            away = squares - 2 * (x @ weights[c]) + weights[c] @ means[c]
            inside = (((y - weights[c]) @ wide) @ turn).square()
            found[:, :, c] = _log_densities(away, inside, gamma.clamp_min(0), ALPHAS)
        for (w, power), (s, sharpness) in itertools.product(enumerate(powers), enumerate(SHARPNESSES)):
            logs = (sharpness * found + power * shares).log_softmax(dim=2)
            own_logs = logs.gather(2, target.expand(len(ALPHAS), -1)[:, :, None])
            grid[w, p, :, s] = own_logs.clamp_min(-WORST).sum(dim=(1, 2))
    return grid, apart


def _log_densities(squares: Tensor, inside: Tensor, gamma: Tensor, alphas: Sequence[float]) -> Tensor:
    """Log-densities [A, N], up to what is the same for all classes.

    In coordinates z in which B is the identity: ``squares`` [N] = ‖z‖², but for what all classes share; ``inside``
    [N, K] = (wᵀz)² for the columns w of W turned to be orthogonal, of squared length ``gamma`` [K]; the covariance is
    (1 − α) I + α W Wᵀ.
    """
    found = []
    for alpha in alphas:
        kept = 1 - alpha
        both = kept + alpha * gamma
        distance = (squares - (inside * (alpha / both)).sum(dim=1)) / kept
        # Directions beyond K add log(1 − α) each, for every class the same number of them.
        found.append(-0.5 * (distance + (both / kept).log().sum()))
    return torch.stack(found)


@dataclass(frozen=True)
class Covariance:
    """A covariance F Fᵀ + diag(rest), ``wide`` F [d, m] and ``rest`` [d] float64, which rests on so many ``images``."""

    wide: Tensor
    rest: Tensor
    images: float

    @staticmethod
    def of(shared: tuple[Tensor, ...], units: Tensor, images: float) -> Covariance:
        """Of one task: its directions [d, R], variances [R] and rest [d] in those ``units`` [d]."""
        directions, variances, rest = (value.double() for value in shared)
        scale = units.double()
        return Covariance(directions * scale[:, None] * variances.sqrt(), rest * scale.square(), images)

    @staticmethod
    def summed(parts: Sequence[Covariance]) -> Covariance:
        """The mean of several, weighted by their images."""
        images = sum(part.images for part in parts)
        wide = torch.cat([part.wide * math.sqrt(part.images / images) for part in parts], dim=1)
        rest = torch.zeros_like(parts[0].rest)
        for part in parts:
            rest += part.rest * (part.images / images)
        return Covariance(wide, rest, images)

    def regular(self, choice: int, means: Tensor) -> tuple[Tensor, Tensor]:
        """B of a choice of ridge and κ, for classes with ``means`` [S, d].

        ``spread`` [d] and ``reach`` P [d, m]: between divisions by the spread B⁻¹ is I − P Pᵀ.

        So much as the covariance has directions, m, and not the number of features decides what it costs (Woodbury).
        """
        column, k = divmod(choice, len(KAPPAS))
        diagonal = self.wide.square().sum(dim=1) + self.rest
        # What does not vary within classes, as where each has one image, is known to a float's precision.
        least = TINY * means.double().square().mean(dim=0)
        mean = max(float(diagonal.mean()), float(least.mean()), torch.finfo(torch.float32).tiny)
        ridge = torch.full_like(diagonal, mean)
        if column:
            ridge = (diagonal + least).where(diagonal + least > 0, mean)
        spread = (self.rest + KAPPAS[k] * len(diagonal) / max(1.0, self.images) * ridge).sqrt()
        scaled = self.wide / spread[:, None]
        inner = torch.eye(scaled.shape[1], dtype=torch.float64) + scaled.T @ scaled
        factor = torch.linalg.cholesky(inner)
        found: Tensor = torch.linalg.solve_triangular(factor, scaled.T, upper=False)
        return spread, found.T


@dataclass(frozen=True)
class Choice:
    """What held-out images have chosen: position of ridge and κ, α, sharpness of the posterior."""

    ridge: int
    alpha: float
    sharpness: float


def choose(tallies: Tensor) -> Choice:
    """The likeliest choice by summed tallies [P, A, S] and the prior."""
    best = int((tallies - _costs()).argmax())
    p, a, s = torch.unravel_index(torch.tensor(best), tallies.shape)
    likeliest = ALPHAS[int(a)]
    return Choice(int(p), likeliest if likeliest <= TRUSTED else likeliest / 2, SHARPNESSES[int(s)])


def _costs() -> Tensor:
    """What the prior takes from the tallies of each choice, [P, A, S] float64."""
    alpha = torch.tensor([math.log2(max(a, NONE) / DEFAULT[0]) for a in ALPHAS]).square()
    kappa = torch.tensor([math.log2(k / DEFAULT[1]) for k in KAPPAS] * RIDGES).square()
    sharpness = torch.tensor([math.log2(s / DEFAULT[2]) for s in SHARPNESSES]).square()
    return (PRIOR[1] * kappa[:, None, None] + PRIOR[0] * alpha[:, None] + PRIOR[2] * sharpness).double()


@dataclass(frozen=True)
class Solved:
    """The solved gate of one kind of input: S classes of all tasks, task after task, as stored.

    ``means`` [S, d], ``scales`` [S] (mean distance of a class's own images), ``centre`` [d] and ``spread`` [d]: what
    features are brought to, in which B⁻¹ is the identity less ``reach`` times its transpose; ``grams`` [S, K, K]:
    WᵀW of each class; all float32. ``weights`` [S, d] float64: the class means through it, exactly, since squares of
    distances are differences of large numbers. ``reach`` [d, m]: float32, or float64
    where that would round too much. ``choice`` [2] float64: α and sharpness.
    """

    means: Tensor
    scales: Tensor
    centre: Tensor
    spread: Tensor
    reach: Tensor
    weights: Tensor
    grams: Tensor
    choice: Tensor


def solve(tasks: Sequence[Gaussians]) -> Solved:
    """The gate of these tasks, at least one, in that order of classes."""
    # Sums depend on the order of their terms in the last bits: statistics alone decide it.
    canonical = sorted(range(len(tasks)), key=lambda t: _key(tasks[t]))
    classes = sum(len(t.means) for t in tasks)
    centre = torch.zeros(tasks[0].means.shape[1], dtype=torch.float64)
    tallies = torch.zeros_like(tasks[0].tallies)
    for t in canonical:
        centre += tasks[t].means.double().sum(dim=0) / classes
        tallies += tasks[t].tallies
    chosen = choose(tallies)
    covariance = _gathered([tasks[t].covariance() for t in canonical])
    means = torch.cat([t.means for t in tasks])
    spread, reach = covariance.regular(chosen.ridge, means)
    # In float32 unless a direction has so large a variance that I − P Pᵀ would lose it.
    steepest = float((covariance.wide / spread[:, None]).square().sum(dim=0).max())
    centre, spread, reach = centre.float(), spread.float(), reach if steepest > STEEP else reach.float()
    exact = reach.double()
    sharpness = chosen.sharpness * _ratio([tasks[t] for t in canonical], chosen.ridge, spread.double(), exact)
    widest = max(t.directions.shape[2] for t in tasks)
    weights, grams = [], []
    for task in tasks:
        own = (task.means.double() - centre.double()) / spread.double()
        weights.append(own - (own @ exact) @ exact.T)
        wide = own_directions(task, spread)
        through = wide.transpose(1, 2) @ exact
        gram = wide.transpose(1, 2) @ wide - through @ through.transpose(1, 2)
        grams.append(F.pad(gram, (0, widest - gram.shape[1], 0, widest - gram.shape[1])))
    return Solved(
        means,
        torch.cat([t.scale for t in tasks]).float(),
        centre,
        spread,
        reach,
        torch.cat(weights),
        torch.cat(grams).float(),
        torch.tensor([chosen.alpha, sharpness], dtype=torch.float64),
    )


def alone(task: Gaussians) -> GaussianGate:
    """The gate of one task, from its own statistics alone: its answers never change, whatever else is learned."""
    return GaussianGate.of(solve([task]), [len(task.means)])


def _gathered(parts: Sequence[Covariance]) -> Covariance:
    """The covariance of all tasks, with no more directions than there are features."""
    found = Covariance.summed(parts)
    if found.wide.shape[1] <= len(found.wide):
        return found
    values, vectors = torch.linalg.eigh(found.wide @ found.wide.T)
    return replace(found, wide=vectors * values.clamp_min(0).sqrt())


def _ratio(tasks: Sequence[Gaussians], ridge: int, spread: Tensor, reach: Tensor) -> float:
    """How far class means lie apart under the tasks' own B, over how far they do under the gate's; 1 for want of any.

    Of tasks with one class nothing lies apart, and what no images were left out for was not measured.
    """
    own = here = 0.0
    for task in tasks:
        if float(task.apart[ridge]) > 0:
            means = (task.means.double() - task.means.double().mean(dim=0)) / spread
            own += float(task.apart[ridge])
            here += float(means.square().sum() - (means @ reach).square().sum())
    return own / here if here > 0 else 1.0


def _key(task: Gaussians) -> tuple[float, ...]:
    """What orders tasks in sums: their own statistics, whatever their names and numbers."""
    return (float(task.shared_variances.double().sum()), float(task.means.double().sum()), float(task.counts.sum()))


def own_directions(task: Gaussians, spread: Tensor) -> Tensor:
    """The directions of a task's classes times their deviations, [C, d, K] float64, in the gate's units."""
    scale = (task.units.double() / spread.double())[None, :, None]
    return task.directions.double() * scale * task.variances.double().sqrt()[:, None]


@dataclass(frozen=True)
class GaussianGate:
    """A solved gate ready to decide: ``solved``, with ``owner`` [S] and ``position`` [S]: task, and class of it."""

    solved: Solved
    owner: Tensor
    position: Tensor

    @staticmethod
    def of(solved: Solved, classes: Sequence[int]) -> GaussianGate:
        """From the stored arrays; ``classes``: how many classes each task has."""
        owner = torch.repeat_interleave(torch.tensor(classes))
        position = torch.cat([torch.arange(count) for count in classes])
        return GaussianGate(solved, owner, position)

    @property
    def scales(self) -> Tensor:
        """Mean distance of a class's own images, [S]."""
        return self.solved.scales

    @property
    def sharpness(self) -> float:
        """What log-densities are multiplied by before they are a posterior."""
        return float(self.solved.choice[1])

    def linear(self, values: Tensor) -> Tensor:
        """Log-posteriors [N, S] of features [N, d] by the linear discriminant (α = 0), up to what all classes share.

        Without the classes' priors, which tasks keep for themselves.
        """
        x = self._centred(values)
        weights = self.solved.weights.double()
        means = (self.solved.means.double() - self.solved.centre.double()) / self.solved.spread.double()
        return settled(self.sharpness * (x @ weights.T - 0.5 * (weights * means).sum(dim=1)))

    def shortlist(self, values: Tensor, limit: int = SHORTLIST) -> tuple[Tensor, Tensor]:
        """The ``limit`` likeliest classes (all, if there are fewer) of features [N, d] by the linear discriminant.

        Log-posteriors, falling, and positions, both [N, L].
        """
        found = self.linear(values)
        return found.topk(min(limit, found.shape[1]), dim=1)

    def shortlisted_tasks(self, values: Tensor, limit: int) -> list[int]:
        """The ``limit`` tasks that are likeliest for a batch of features [N, d] of one task, in their order."""
        found = self.linear(values)
        tasks = int(self.owner.max()) + 1
        nearest = torch.full((len(values), tasks), -math.inf, dtype=found.dtype)
        nearest.scatter_reduce_(1, self.owner.expand_as(found), found, "amax")
        # Each image counts up to a bound, so that a few strange ones do not decide for a batch.
        behind = (nearest - nearest.amax(dim=1, keepdim=True)).clamp_min(-BOUND).sum(dim=0)
        return sorted(behind.topk(min(limit, tasks)).indices.tolist())

    def compare(self, values: Tensor, statistics: Statistics) -> Compared:
        """The likeliest classes of features [N, d], each image by itself."""
        chosen = self.shortlist(values)[1]
        return Compared(chosen, self.scores(values, chosen, statistics))

    def within(self, values: Tensor, task: int, statistics: Statistics) -> Compared:
        """The C classes of one task."""
        chosen = (self.owner == task).nonzero()[:, 0].expand(len(values), -1)
        return Compared(chosen, self.scores(values, chosen, statistics))

    def evidence(self, values: Tensor, tasks: Sequence[int], statistics: Statistics) -> Tensor:
        """Log-likelihoods [T] of tasks for a batch of one task, from its features [N, d].

        Each image counts up to ``BOUND`` nats against a task, so that a few strange images do not outvote the others.
        """
        each = [self.within(values, task, statistics).likely.logsumexp(dim=1) for task in tasks]
        likely = torch.stack(each, dim=1)
        return (likely - likely.amax(dim=1, keepdim=True)).clamp_min(-BOUND).sum(dim=0)

    def scores(self, values: Tensor, chosen: Tensor, statistics: Statistics) -> Tensor:
        """Log-posteriors [N, L] of features [N, d] for the classes ``chosen`` [N, L], up to what an image's share.

        ``statistics(task)`` is called for tasks of chosen classes alone, so that nothing else is read.
        """
        alpha = float(self.solved.choice[0])
        x = self._centred(values)
        reach = self.solved.reach.double()
        y = x - (x @ reach) @ reach.T
        found = values.new_empty(chosen.shape, dtype=torch.float64)
        for one in chosen.unique().tolist():
            rows, columns = (chosen == one).nonzero(as_tuple=True)
            task = statistics(int(self.owner[one]))
            assert isinstance(task, Gaussians)
            weight = self.solved.weights[one].double()
            mean = (self.solved.means[one].double() - self.solved.centre.double()) / self.solved.spread.double()
            # Without the image's own length, which all classes share: in a column that has never varied it may be so
            # long that nothing else would count.
            away = weight @ mean - 2 * (x[rows] @ weight)
            wide = _one(task, int(self.position[one]), self.solved.spread)
            gamma, turn = torch.linalg.eigh(self.solved.grams[one, : wide.shape[1], : wide.shape[1]].double())
            inside = (((y[rows] - weight) @ wide) @ turn).square()
            density = _log_densities(away, inside, gamma.clamp_min(0), [alpha])[0]
            found[rows, columns] = self.sharpness * density + task.priors[self.position[one]]
        return settled(found)

    def _centred(self, values: Tensor) -> Tensor:
        return (values.double() - self.solved.centre.double()) / self.solved.spread.double()


def _one(task: Gaussians, position: int, spread: Tensor) -> Tensor:
    """:func:`own_directions` of one class, [d, K]."""
    scale = (task.units.double() / spread.double())[:, None]
    return task.directions[position].double() * scale * task.variances[position].double().sqrt()
