"""Where one task ends and the next begins: a stream is judged window by window against its current segment.

Images: a view of the segment's own first images (standardised pixels, their leading principal directions, what is
left outside; probabilistic PCA, Tipping & Bishop 1999) gives every image a few features. The view is fitted to half
of the segment's images; the other half and all later ones are the reference, so reference and window are equally
fresh to it. A window is compared with the reference by Hotelling's two-sample T² (1931), a change in any direction,
expressed as a standard normal deviate (Paulson 1942).

Labels: the share of images whose labels have arrived while as large a share of labels has left, less what chance
would show (unseen labels: Good 1953). A rare class that shows up late drives nothing away and is no boundary.

A window that alarms is confirmed by the next one and by both together; nothing later is looked at. The boundary then
is where the summed log likelihood ratio of the images behind it is largest (Page 1954); for images it is Fisher's
linear discriminant (1936). All of it assumes that images of one task come in random order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.runtime.events import OnDone


@dataclass(frozen=True)
class Options:
    """Constants, found on MNIST training images (docs/method.md).

    ``window``: images judged at once. ``minimum``: the shortest segment; the first so many images of a segment are
    taken for granted, and a change in the last ``minimum + window`` images of the stream may be overlooked.
    ``alarm`` and ``sure``: standard normal deviates that a window and two windows together must reach.
    ``swap``: share of images whose labels are exchanged. ``rank``: principal directions at most. ``largest``: images
    after which the view is no longer fitted anew.
    """

    window: int = 32
    minimum: int = 64
    alarm: float = 3.0
    sure: float = 6.0
    swap: float = 0.25
    rank: int = 16
    largest: int = 1024


LIMIT = 3.0
"""Features are cut off at so many standard deviations, pixels at two more: a single odd image must not decide."""

RARE = 0.1
"""A label has left (or arrived) when its share is at most this part of its share before (or after).

A label is rare in a segment when it is there less than this part as often as the most frequent one.
"""

TINY = 1e-12


@dataclass(frozen=True)
class View:
    """How images look to a segment: pixel means and spreads [D], directions [D, k] and their variances [k]."""

    mean: Tensor
    spread: Tensor
    directions: Tensor
    variances: Tensor

    @staticmethod
    def fit(x: Tensor, rank: int) -> View:
        """From images [n, D], float64, n ≥ 2; at most one direction for every four images."""
        mean, spread = x.mean(dim=0), x.std(dim=0)
        spread = spread.clamp_min(1e-3 * float(spread.square().mean().sqrt()) + TINY)
        scaled = ((x - mean) / spread).clamp(-LIMIT - 2, LIMIT + 2)
        _, singular, directions = torch.linalg.svd(scaled, full_matrices=False)
        variances = singular.square() / len(x)
        k = min(rank, max(1, len(x) // 4), int((variances > 1e-9 * variances[0]).sum()) or 1)
        return View(mean, spread, directions[:k].T.contiguous(), variances[:k].clamp_min(TINY))

    def features(self, x: Tensor) -> Tensor:
        """Features [n, k + 2] of images [n, D]: whitened coordinates; log deviation inside and outside of them."""
        scaled = ((x.double() - self.mean) / self.spread).clamp(-LIMIT - 2, LIMIT + 2)
        flat = scaled @ self.directions
        outside = (scaled.square().sum(dim=1) - flat.square().sum(dim=1)).clamp_min(0) / scaled.shape[1]
        white = flat * self.variances.rsqrt()
        logs = torch.stack([white.square().mean(dim=1), outside], dim=1).clamp_min(1e-6).log()
        return torch.cat([white.clamp(-LIMIT, LIMIT), logs], dim=1)


@dataclass(frozen=True)
class Moments:
    """Count, sum [d] and sum of products [d, d] of features."""

    count: int
    total: Tensor
    products: Tensor

    @staticmethod
    def of(features: Tensor) -> Moments:
        """From features [n, d]."""
        return Moments(len(features), features.sum(dim=0), features.T @ features)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> Tensor:
        """Mean [d]."""
        return self.total / self.count

    @property
    def scatter(self) -> Tensor:
        """Sum of products [d, d] about the mean."""
        return self.products - torch.outer(self.total, self.total) / self.count


def pooled(reference: Moments, window: Moments) -> Tensor:
    """Covariance [d, d] within both, with a little on the diagonal for features that are constant."""
    within = (reference.scatter + window.scatter) / (reference.count + window.count - 2)
    return within + torch.diag(1e-3 * within.diagonal().mean().clamp_min(TINY).expand(len(within)))


def deviate(reference: Moments, window: Moments) -> float:
    """Hotelling's T² between two sets of features as a standard normal deviate; large: not from one source.

    Minus infinity for a window of fewer than two images, which says nothing.
    """
    n, m, d = reference.count, window.count, len(reference.total)
    if m < 2:
        return -torch.inf
    difference = window.mean - reference.mean
    t2 = n * m / (n + m) * float(difference @ torch.linalg.solve(pooled(reference, window), difference))
    free = n + m - d - 1
    root = (t2 * free / (d * (n + m - 2))) ** (1 / 3)
    a, b = 2 / (9 * d), 2 / (9 * free)
    return float(((1 - b) * root - (1 - a)) / (b * root**2 + a) ** 0.5)


def swap(reference: Tensor, window: Tensor) -> float:
    """Share of images whose labels were exchanged beyond chance, from label counts [C] before and in the window.

    The lesser of two shares: of the window whose labels had hardly been there, of the reference whose labels have
    hardly come again. Chance is taken off both: the share of reference images whose labels would hardly be there
    without that image, with three of its standard errors; (1 − p)^m of a label's share p stays away from m images.
    """
    n, m = float(reference.sum()), float(window.sum())
    p, q = reference.double() / n, window.double() / m
    unseen = p[reference - 1 <= RARE * n / m].sum()
    arrived = q[p <= RARE * q].sum() - unseen - 3 * (unseen * (1 - unseen) * (1 / n + 1 / m)).sqrt()
    left = p[q <= RARE * p].sum() - (p * (1 - p) ** m).sum()
    return float(torch.minimum(arrived, left))


def boundaries(
    x: Tensor,
    y: Tensor | None,
    generator: torch.Generator,
    options: Options | None = None,
    on_done: OnDone = lambda done: None,
) -> list[int]:
    """Positions at which a new segment begins, ascending, without 0.

    ``x`` [N, D], any real type and unit; ``y`` [N] label codes, or None to go by the images alone. ``generator``
    splits each segment's images into those that make its view and those that are its reference.
    """
    options = options or Options()
    codes = None if y is None else y.unique(return_inverse=True)[1]
    found: list[int] = []
    start = 0

    def first() -> int | None:
        rest = None if codes is None else codes[start:]
        return _first(x[start:], rest, generator, options, lambda done: on_done(start + done))

    while (length := first()) is not None:
        start += length
        found.append(start)
    on_done(len(x))
    return found


def _first(x: Tensor, y: Tensor | None, generator: torch.Generator, options: Options, on_done: OnDone) -> int | None:
    """Length of the segment that the stream begins with; None when it never ends."""
    window, fitted, classes = options.window, 0, 0 if y is None else int(y.max()) + 1
    for t in range(options.minimum, len(x) - 2 * window + 1, window):
        on_done(t)
        # The window before this one may lie behind the boundary already, at least in part: it has no say yet.
        past = max(options.minimum, t - window)
        if past >= 2 * fitted and fitted < options.largest:
            order, fitted = torch.randperm(past, generator=generator), past
            view = View.fit(x[order[: past // 2]].double(), options.rank)
            reference = Moments.of(view.features(x[order[past // 2 :]]))
        elif past > options.minimum:
            reference = reference + Moments.of(view.features(x[past - window : past]))
        change = _Change(x, y, classes, t, past, view, reference, options)
        if change.found():
            return change.position()
    return None


@dataclass(frozen=True)
class _Change:
    """A possible change at about image ``t`` of a segment whose first ``past`` images gave view and reference."""

    x: Tensor
    y: Tensor | None
    classes: int
    t: int
    past: int
    view: View
    reference: Moments
    options: Options

    def found(self) -> bool:
        """Whether the window at ``t`` differs from the segment, the next one as well, and both together clearly."""
        window, alarm = self.options.window, self.options.alarm
        if not self._differs(alarm, 0, window) or not self._differs(alarm, window, 2 * window):
            return False
        return self._differs(self.options.sure, 0, 2 * window)

    def position(self) -> int:
        """The image from which on the stream looks more like the second window than like the segment."""
        window = self.options.window
        begin, end = max(self.options.minimum, self.t - 2 * window), self.t + 2 * window
        ratio = torch.zeros(end - begin, dtype=torch.float64)
        after = self._moments(window, 2 * window)
        if after.count > 1 and deviate(self.reference, self._moments(0, 2 * window)) >= self.options.sure:
            middle, difference = (after.mean + self.reference.mean) / 2, after.mean - self.reference.mean
            weights = torch.linalg.solve(pooled(self.reference, after), difference)
            ratio += (self.view.features(self.x[begin:end]) - middle) @ weights
        if self.y is not None:
            p, q = self._counts(0, self.past) + 0.5, self._counts(self.t + window, end) + 0.5
            ratio += (q / q.sum() / (p / p.sum())).log()[self.y[begin:end]]
        return begin + int(ratio.flip(0).cumsum(0).flip(0).argmax())

    def _differs(self, least: float, begin: int, end: int) -> bool:
        """Whether the images from ``t + begin`` up to ``t + end`` differ in labels, or by ``least`` deviates."""
        if self.y is not None:
            counts = self._counts(self.t + begin, self.t + end)
            if swap(self._counts(0, self.past), counts) >= self.options.swap:
                return True
        return deviate(self.reference, self._moments(begin, end)) >= least

    def _moments(self, begin: int, end: int) -> Moments:
        """Features of these images; those of new and rare labels are left to the labels' own evidence."""
        begin, end = self.t + begin, self.t + end
        x = self.x[begin:end]
        if self.y is not None:
            counts = self._counts(0, self.past)
            x = x[(counts >= RARE * counts.max())[self.y[begin:end]]]
        return Moments.of(self.view.features(x))

    def _counts(self, begin: int, end: int) -> Tensor:
        """Label counts [C] of the segment's images from ``begin`` up to ``end``."""
        assert self.y is not None
        return torch.bincount(self.y[begin:end], minlength=self.classes)
