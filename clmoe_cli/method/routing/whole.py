"""All that answers for one kind of input, as one module of fixed tensors: what ``predict`` does, in one graph.

The steps are those of :mod:`clmoe_cli.method.routing.gaussians` and :mod:`clmoe_cli.method.routing.decide`, with the
same roundings between them. A graph cannot skip what an image does not need, so that all classes are compared in full
and all subnetworks asked, and the shortlist only says which of them count. The directions of a class, which are most
of the numbers, serve its density and its p-value, and stay in half precision, as the store has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clmoe_cli.method.routing.calibration import LOWER, MINIMUM
from clmoe_cli.method.routing.decide import NEGLIGIBLE
from clmoe_cli.method.routing.features import MOST_COLUMNS, ROOT, VECTOR, calculated, columns
from clmoe_cli.method.routing.gaussians import OUTSIDE, SAME, TINY, GaussianGate, Gaussians
from clmoe_cli.method.routing.standalone import Reading
from clmoe_cli.method.routing.subspaces import SHORTLIST
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.method.subnetwork.compact import Compact


class Features(nn.Module):
    """The gate's features [N, d] float32 of inputs [N, *shape]."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading
        size = math.prod(reading.input_shape)
        self.projected = reading.features in (VECTOR, ROOT) and size > MOST_COLUMNS
        # As features.projection has them, in half of the room.
        generator = torch.Generator().manual_seed(0)
        self.register_buffer(
            "drawn", torch.randn((size, MOST_COLUMNS), generator=generator) if self.projected else None
        )

    drawn: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Of inputs [N, *shape]."""
        x = inputs if self.reading.scale == 1.0 else inputs * self.reading.scale
        if self.projected:
            matrix = self.drawn.double() / math.sqrt(MOST_COLUMNS)
            return (columns(x, self.reading.features) @ matrix).float()
        return calculated(x, self.reading.features, self.reading.eye).float()


@dataclass(frozen=True)
class Compared:
    """What the gate says of N images and S classes, all [N, S] float32.

    ``linear``: log-posteriors by the linear discriminant, ``likely``: in full; ``distances``: squared distances by a
    class's own covariance; ``away``: from its mean.
    """

    linear: Tensor
    likely: Tensor
    distances: Tensor
    away: Tensor


class Densities(nn.Module):
    """Compares features with all S classes of a gate, as ``GaussianGate`` and ``Gaussians`` do.

    ``tasks``: the statistics of the gate's tasks, in its order. Where all features have one unit all classes are two
    products with one matrix of directions; where they have not, as in tables, differences are taken class by class,
    since a column that hardly varies has values of any size.
    """

    def __init__(self, gate: GaussianGate, tasks: Sequence[Gaussians]) -> None:
        super().__init__()
        solved = gate.solved
        alpha, self.sharpness = solved.choice.tolist()
        self.kept = 1 - alpha
        self.own_covariances = alpha > 0
        owner = gate.owner
        widest = max(task.directions.shape[2] for task in tasks)
        padded = [F.pad(task.directions, (0, widest - task.directions.shape[2])) for task in tasks]
        variances = [F.pad(task.variances, (0, widest - task.variances.shape[1])) for task in tasks]
        directions, variance = torch.cat(padded), torch.cat(variances).double()  # [S, d, K], [S, K]
        units = torch.stack([task.units.double() for task in tasks])
        self.even = bool((units == 1).all())
        centre, spread = solved.centre.double(), solved.spread.double()
        means, weights = (solved.means.double() - centre) / spread, solved.weights.double()
        within = torch.tensor([_mean_variance(task) for task in tasks], dtype=torch.float64)[owner]
        ridge = OUTSIDE * within[:, None]
        gamma, turn = torch.linalg.eigh(F.pad(solved.grams, (0, widest - solved.grams.shape[2]) * 2).double())
        both = self.kept + alpha * gamma.clamp_min(0)
        turn = variance.sqrt()[:, :, None] * turn * (alpha / both).sqrt()[:, None, :]
        self.register_buffer("centre", solved.centre)
        self.register_buffer("spread", solved.spread)
        self.register_buffer("means", solved.means)
        self.register_buffer("reach", solved.reach)
        self.register_buffer("weights", weights)
        self.register_buffer("middle", (weights * means).sum(dim=1))
        self.register_buffer("priors", torch.cat([task.priors for task in tasks]))
        self.register_buffer("volume", (both / self.kept).log().sum(dim=1))
        self.register_buffer("shares", ridge / (variance + ridge).clamp_min(TINY))
        self.register_buffer("turn", turn)
        flat = directions.permute(1, 0, 2).flatten(1).contiguous()
        self.register_buffer("directions", flat if self.even else directions)
        # Where the classes themselves are along their directions, [S, K].
        points = (solved.means.double() - centre, weights / spread) if self.even else ()
        at = [torch.stack([p @ d.double() for p, d in zip(of, directions, strict=True)]) for of in points]
        self.register_buffer("own_at", at[0] if at else None)
        self.register_buffer("through_at", at[1] if at else None)
        self.register_buffer("units", None if self.even else torch.stack([t.units for t in tasks])[owner])
        self.classes, self.widest = len(owner), widest

    centre: Tensor
    spread: Tensor
    means: Tensor
    reach: Tensor
    weights: Tensor
    middle: Tensor
    priors: Tensor
    volume: Tensor
    shares: Tensor
    turn: Tensor
    directions: Tensor
    own_at: Tensor
    through_at: Tensor
    units: Tensor

    def forward(self, values: Tensor) -> Compared:
        """Of features [N, d] float32."""
        x = values.double()
        spread, reach = self.spread.double(), self.reach.double()
        z = (x - self.centre.double()) / spread
        along = z @ self.weights.T
        y = z - (z @ reach) @ reach.T
        own, through = (self._one_unit if self.even else self._units)(x, y)
        likely = self.middle - 2 * along
        if self.own_covariances:
            turned = torch.einsum("nsk,skj->nsj", through, self.turn)
            likely = likely - turned.square().sum(dim=2)
        likely = self.priors - 0.5 * self.sharpness * (likely / self.kept + self.volume)
        away, length = self._from_means(x)
        inside = own.square()
        distances = (away - inside.sum(dim=2)).clamp_min(0) + (inside * self.shares).sum(dim=2)
        none = torch.zeros_like(away)
        near = SAME * length
        return Compared(
            (self.sharpness * (along - 0.5 * self.middle)).float(),
            likely.float(),
            torch.where(distances > near, distances, none).float(),
            torch.where(away > near, away, none).float(),
        )

    def _one_unit(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of features [N, d] and y = B⁻¹ z [N, d]: their differences from the classes along the directions, [N, S, K]
        each."""
        shape = (self.classes, self.widest)
        both = torch.stack([x - self.centre.double(), y / self.spread.double()]) @ self.directions.double()
        own, through = both[0].unflatten(1, shape), both[1].unflatten(1, shape)
        return own - self.own_at, through - self.through_at

    def _units(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same where features have units of their own."""
        units, matrix = self.units.double(), self.directions.double()
        own = (x[:, None] - self.means.double()) / units
        through = (y[:, None] - self.weights) * (units / self.spread.double())
        return torch.einsum("nsd,sdk->nsk", own, matrix), torch.einsum("nsd,sdk->nsk", through, matrix)

    def _from_means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances from the means, and the squared lengths of both together, [N, S] each."""
        means = self.means.double()
        if self.even:
            centre = self.centre.double()
            centred, middles = x - centre, means - centre
            squares = centred.square().sum(dim=1, keepdim=True) - 2 * centred @ middles.T
            squares = (squares + middles.square().sum(dim=1)).clamp_min(0)
            return squares, x.square().sum(dim=1, keepdim=True) + means.square().sum(dim=1)
        units = self.units.double()
        squares = ((x[:, None] - means) / units).square().sum(dim=2)
        return squares, (x[:, None] / units).square().sum(dim=2) + (means / units).square().sum(dim=1)


def _mean_variance(task: Gaussians) -> float:
    return float(task.shared_variances.double().sum() + task.shared_rest.double().sum()) / len(task.shared_rest)


class Usual(nn.Module):
    """p-values [N] float64 of images for the tasks that they are answered with, as ``Gaussians.answered``."""

    def __init__(self, tasks: Sequence[Gaussians], owner: Tensor) -> None:
        super().__init__()
        own = [row for task in tasks for row in task.quantiles]
        near = [row for task in tasks for row in task.near]
        best = [task.best for task in tasks]
        counts = torch.cat([task.counts for task in tasks]).double()
        judged = counts >= MINIMUM
        of_task = torch.zeros(len(tasks), dtype=torch.float64).index_add_(0, owner, counts.where(judged, 0.0))
        self.register_buffer("owner", owner)
        self.register_buffer("counts", counts)
        self.register_buffer("judged", judged)
        self.register_buffer("of_task", of_task)
        for name, rows in (("own", own), ("near", near), ("best", best)):
            some = any(map(len, rows))
            self.register_buffer(name, _rising(rows) if some else None)
            sizes = torch.tensor([len(row) for row in rows], dtype=torch.float64)
            self.register_buffer(f"{name}_sizes", sizes if some else None)

    owner: Tensor
    counts: Tensor
    judged: Tensor
    of_task: Tensor
    own: Tensor
    near: Tensor | None
    best: Tensor | None
    own_sizes: Tensor
    near_sizes: Tensor
    best_sizes: Tensor

    def forward(self, compared: Compared, winner: Tensor) -> Tensor:
        """Of images that were compared with all classes, and the classes ``winner`` [N] that answer."""
        every = torch.arange(len(self.counts))
        farther = self.own_sizes - _below(self.own, every, compared.distances)
        p = (farther / self.own_sizes * self.counts + 1) / (self.counts + 1)
        if self.near is not None:
            both = self.near_sizes > 0
            nearer = torch.minimum(_below(self.near, every, compared.away, equal=True), self.near_sizes)
            lower = (nearer / self.near_sizes.clamp_min(1) * self.counts + 1) / (self.counts + 1)
            p = torch.where(both, torch.minimum(p / (1 - LOWER), lower / LOWER).clamp(max=1.0), p)
        found = p.gather(1, winner[:, None])[:, 0]
        if self.best is not None:
            task = self.owner[winner]
            ours = (self.owner == task[:, None]) & self.judged
            largest = torch.where(ours, p, torch.zeros_like(p)).amax(dim=1)
            size = self.best_sizes[task]
            usual = torch.minimum(_below(self.best, task, largest.float(), equal=True), size)
            count = self.of_task[task]
            share = (usual / size.clamp_min(1) * count + 1) / (count + 1)
            found = torch.where(size > 0, share, found)
        return torch.where(self.judged[winner], found, torch.full_like(found, math.nan))


def _rising(rows: Sequence[Tensor]) -> Tensor:
    """Rising numbers of different length as squares [n, b, b] float32, row after row, filled up with infinity."""
    side = math.isqrt(max(len(row) for row in rows)) + 1
    filled = [F.pad(row.float(), (0, side**2 - len(row)), value=math.inf) for row in rows]
    return torch.stack(filled).reshape(-1, side, side)


def _below(squares: Tensor, which: Tensor, asked: Tensor, equal: bool = False) -> Tensor:
    """How many of the rising numbers of the squares ``which`` [S] lie below those that are ``asked`` [..., S], or are
    ``equal`` to them, float64: first of the rows' last ones, then in one row, since ONNX has no search."""

    def count(rows: Tensor) -> Tensor:
        found: Tensor = rows <= asked[..., None] if equal else rows < asked[..., None]
        return found.long().sum(dim=-1)

    side = squares.shape[1]
    row = count(squares[which, :, -1]).clamp(max=side - 1)
    return (row * side + count(squares[which, row])).double()


class Perceptron(nn.Module):
    """Log-probabilities [N, C] float64 of a compact perceptron's classes, from inputs [N, *shape]."""

    def __init__(self, network: Compact, scaling: Scaling) -> None:
        super().__init__()
        self.scaling = scaling
        self.layers = network.net.layers
        self.register_buffer("inputs", network.inputs)
        for name in self.layers:
            for kind in ("weight", "bias"):
                self.register_buffer(f"{name}_{kind}", network.params[f"{name}.{kind}"])

    inputs: Tensor | None

    def forward(self, inputs: Tensor) -> Tensor:
        """Of inputs [N, *shape]; sums are in float64, and logits rounded, as :mod:`clmoe_cli.method.reproducible`."""
        x = self.scaling.apply(inputs.flatten(1))
        x = (x if self.inputs is None else x.index_select(1, self.inputs)).double()
        for i, name in enumerate(self.layers):
            x = x.relu() if i else x
            x = F.linear(x, getattr(self, f"{name}_weight").double(), getattr(self, f"{name}_bias").double())
        return x.float().double().log_softmax(dim=1)


class Convolutions(nn.Module):
    """The same of a network of convolutions, which standardises its inputs itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """Of inputs [N, *shape]."""
        said: Tensor = self.net(inputs)[0].double().log_softmax(dim=1)
        return said


@dataclass(frozen=True)
class Parts:
    """What a model is made of.

    The ``gate`` of T ``tasks`` and their statistics; the label ``codes`` [S] of its classes, from 0; the ``weights``
    [T] of the tasks' subnetworks, and these: None where the weight is 0; how the gate reads inputs; the ``backbone``
    that makes inputs of pictures, None for none.
    """

    gate: GaussianGate
    tasks: Sequence[Gaussians]
    codes: Tensor
    weights: Sequence[float]
    subnetworks: Sequence[nn.Module | None]
    reading: Reading
    backbone: nn.Module | None


class Whole(nn.Module):
    """Answers images [N, *shape] as ``predict`` does.

    Gives the code of the label and the position of the task [N] int64, the confidence [N] float32, the p-value [N]
    float64, NaN where there is none, and the probabilities of all codes [N, L] float32, 0 beyond the shortlist.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        owner = parts.gate.owner
        self.backbone = parts.backbone
        self.features = Features(parts.reading)
        self.densities = Densities(parts.gate, parts.tasks)
        self.usual = Usual(parts.tasks, owner)
        self.subnetworks = nn.ModuleList(each for each in parts.subnetworks if each is not None)
        self.places = [-1 if each is None else 0 for each in parts.subnetworks]
        for number, place in enumerate(task for task, each in enumerate(self.places) if each == 0):
            self.places[place] = number
        self.sizes = torch.bincount(owner).tolist()
        self.limit, self.labels = min(SHORTLIST, len(owner)), int(parts.codes.max()) + 1
        self.twins = len(parts.codes.unique()) < len(parts.codes)
        self.register_buffer("owner", owner)
        self.register_buffer("codes", parts.codes)
        self.register_buffer("weights", torch.tensor(parts.weights, dtype=torch.float64)[owner])

    owner: Tensor
    codes: Tensor
    weights: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Of images [N, *shape] float32."""
        inputs = images if self.backbone is None else self.backbone(images)
        compared = self.densities(self.features(inputs))
        chosen = compared.linear.topk(self.limit, dim=1).indices
        scores = compared.likely.gather(1, chosen).double()
        if len(self.subnetworks):
            scores = self._pooled(scores, chosen, self._said(inputs, compared.linear))
        codes = self.codes[chosen]
        if self.twins:
            scores = torch.where(_beaten(scores, codes), torch.full_like(scores, -math.inf), scores)
        posterior = scores.softmax(dim=1)
        confidence, best = posterior.amax(dim=1), posterior.argmax(dim=1)
        winner = chosen.gather(1, best[:, None])[:, 0]
        every = codes[:, :, None] == torch.arange(self.labels)
        probabilities = torch.where(every, posterior[:, :, None], torch.zeros_like(posterior)[:, :, None]).sum(dim=1)
        return (
            self.codes[winner],
            self.owner[winner],
            confidence.float(),
            self.usual(compared, winner),
            probabilities.float(),
        )

    def _said(self, inputs: Tensor, like: Tensor) -> Tensor:
        """Log-probabilities [N, S] by the subnetworks, each of its task's classes; 0 where there is none."""
        found, first = [], 0
        for place, size in zip(self.places, self.sizes, strict=True):
            none = torch.zeros_like(like[:, first : first + size], dtype=torch.float64)
            found.append(none if place < 0 else self.subnetworks[place](inputs))
            first += size
        return torch.cat(found, dim=1)

    def _pooled(self, scores: Tensor, chosen: Tensor, said: Tensor) -> Tensor:
        """Scores [N, L] of the shortlist with the opinions mixed in, as :mod:`clmoe_cli.method.routing.decide` does."""
        owner, weights = self.owner[chosen], self.weights[chosen]
        ours = owner[:, :, None] == owner[:, None, :]
        said = said.gather(1, chosen)[:, None, :]
        said = torch.where(ours, said, torch.full_like(said, -math.inf))
        largest = said.amax(dim=2)
        # Of the task's classes only those on the shortlist count.
        all_said = (said - largest[:, :, None]).exp().sum(dim=2).log() + largest
        own = self._diagonal(said) - all_said
        top = scores.amax(dim=1, keepdim=True)
        likely = scores.softmax(dim=1)[:, None, :]
        share = torch.where(ours, likely, torch.zeros_like(likely)).sum(dim=2)
        each = (scores - top).exp()[:, None, :]
        asked = (share > NEGLIGIBLE) & (weights > 0)
        # Where nobody is asked the sum may be zero, and is not needed.
        whole = torch.where(ours, each, torch.zeros_like(each)).sum(dim=2).clamp_min(1e-300).log() + top
        gate, other = scores - whole + torch.log1p(-weights), own + weights.log()
        both = torch.maximum(gate, other) + (-(gate - other).abs()).exp().log1p()
        return torch.where(asked, both + whole, scores)

    def _diagonal(self, said: Tensor) -> Tensor:
        """The own ones [N, L] of [N, L, L]."""
        return torch.where(torch.eye(self.limit, dtype=torch.bool), said, torch.zeros_like(said)).sum(dim=2)


def _beaten(scores: Tensor, codes: Tensor) -> Tensor:
    """Whether another class of the same label has a higher score, or the same and comes earlier; [N, L]."""
    one, other = scores[:, :, None], scores[:, None, :]
    earlier = torch.ones((scores.shape[1], scores.shape[1]), dtype=torch.bool).tril(-1)
    better = (other > one) | ((other == one) & earlier)
    return ((codes[:, :, None] == codes[:, None, :]) & better).any(dim=2)
