"""The gate's features: fixed, fitted to nothing, the same for every store and every task (method section 6).

Images: two layers of moduli of Gabor filters, averaged over a few windows (a scattering transform: Bruna & Mallat,
"Invariant Scattering Convolution Networks", 2013). The filters have no mean, edges are continued, and each layer is
scaled to unit length, so that brightness, contrast and inversion change nothing. Of colour pictures the channels are
brightness and two opponents (red against green, blue against yellow), and their means over the windows are features
as well: what differs by its colour alone has the same edges. Plain vectors: their columns, or the square roots of these
where nothing is below zero and all have one unit, as embeddings that end in a ReLU. What a backbone has seen: its
features by the same rule, scaled to unit length where they are no amounts. Stores of formats 1 and 2 have random ReLU
features of vectors (Rahimi & Recht 2007; Cho & Saul 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from clmoe_cli.method.images import Rows, taken
from clmoe_cli.method.networks.base import BLOCK
from clmoe_cli.method.reproducible import in_blocks
from clmoe_cli.method.routing import eye as eyes
from clmoe_cli.method.routing.eye import Eye
from clmoe_cli.method.routing.network_eye import NetworkEye
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnDone

SIZES = (5, 9, 13)
"""Pixels of the first layer's filters."""
ORIENTATIONS = (6, 4)
SECOND = 5
"""Size of the second layer's filters, on the first layer's grid."""
CYCLES = (1.3, 1.0)
"""Cycles of each layer's waves within the size of a filter."""
GRID = 4
"""Windows along each side of an image."""
SPREAD = 0.14
"""Standard deviation of a window, as a share of the side."""
LONGEST = 32
"""Images with a longer side are shrunk to it first."""
SHORTEST = 12
"""Images with a shorter side are taken as vectors."""
VECTOR_WIDTH = 1024
UNIT = "unit-1"
VECTOR, ROOT, OLD_VECTOR = "vector-1", "vector-root-1", "relu-1"
COLOURED, OLD_COLOURED = "scattering-colour-2", "scattering-colour-1"
"""Names of features; the old ones are those of stores of formats 1 and 2."""
EYED, ADAPTED, PRETRAINED = "+patches-1", "+subnetwork-1", "+pretrained-1"
"""End the names of features with which those of an eye are: one made of patches (:mod:`clmoe_cli.method.routing.eye`),
the first task's subnetwork, or a pretrained network (:mod:`clmoe_cli.method.routing.network_eye`)."""
MOST_COLUMNS = 2048
"""Columns of plain vectors that are taken as they are."""
CHUNK = limits.FEATURE_IMAGES
AnyEye = Eye | NetworkEye
FAINT = 0.02
"""Length up to which a layer's features are left as short as they are: what an even image's rounding leaves."""


COLOUR = 0.7
"""Length of the colours' part; found on held-out training pictures (docs/method.md)."""
OPPONENTS = ((1 / 3, 1 / 3, 1 / 3), (1 / 2, -1 / 2, 0.0), (-1 / 4, -1 / 4, 1 / 2))
"""Brightness, red against green, blue against yellow, from red, green and blue."""


def is_image(input_shape: Sequence[int]) -> bool:
    """Whether inputs of this shape are treated as images (C, H, W) rather than as plain vectors."""
    return len(input_shape) == 3 and min(input_shape[1:]) >= SHORTEST


def kind(input_shape: Sequence[int], backbone: bool = False, root: bool = False) -> str:
    """Name of the features for inputs of this shape, as stores record it; ``backbone``: for features of one; ``root``:
    for vectors of amounts of one unit."""
    if backbone and not root:
        return UNIT
    if not is_image(input_shape):
        return ROOT if root else VECTOR
    return COLOURED if input_shape[0] == 3 else "scattering-1"


def with_eye(name: str, eye: AnyEye | None) -> str:
    """Name of these features with those of an eye appended, if there is one."""
    if eye is None:
        return name
    if isinstance(eye, Eye):
        return name + EYED
    return name + (ADAPTED if eye.adapted else PRETRAINED)


def seen_by_eyes(input_shape: Sequence[int]) -> bool:
    """Whether an eye can look at inputs of this shape."""
    return is_image(input_shape) and min(_shrunk_to(*input_shape[1:])) >= eyes.SIDE


def known(name: str, input_shape: Sequence[int]) -> bool:
    """Whether this version computes features of that name for inputs of this shape."""
    if name.endswith(EYED):
        return seen_by_eyes(input_shape) and known(name.removesuffix(EYED), input_shape)
    if name.endswith((ADAPTED, PRETRAINED)):
        return is_image(input_shape) and known(_fixed(name), input_shape)
    if not is_image(input_shape):
        return name in (VECTOR, ROOT, OLD_VECTOR, UNIT)
    return name == UNIT or name in ((COLOURED, OLD_COLOURED) if input_shape[0] == 3 else ("scattering-1",))


def width(input_shape: Sequence[int], name: str | None = None, eye: AnyEye | None = None) -> int:
    """Number d of features of that name (None: of :func:`kind`) for inputs of this shape.

    ``eye``: of names that have one.
    """
    name = name or kind(input_shape)
    if eye is not None:
        return width(input_shape, _fixed(name)) + eye.width
    if name == UNIT:
        return math.prod(input_shape)
    if name in (VECTOR, ROOT):
        return min(math.prod(input_shape), MOST_COLUMNS)
    if name == OLD_VECTOR:
        return VECTOR_WIDTH
    first = len(SIZES) * ORIENTATIONS[0]
    second, windows, channels = first * ORIENTATIONS[1], GRID**2, input_shape[0]
    if name == COLOURED:
        return channels * (first + 1) * windows + second * windows + (channels - 1) * second * windows // 4
    return channels * (first + second + (channels == 3)) * windows


def features(
    x: Rows,
    input_shape: Sequence[int],
    name: str | None = None,
    on_done: OnDone = lambda done: None,
    eye: AnyEye | None = None,
) -> Tensor:
    """Features [N, d] of inputs [N, D], D the product of ``input_shape``; float32, or float64 if ``x`` is.

    ``name``: which ones; None for those of :func:`kind`. ``eye``: of names that have one. Those of an image are the
    same to the last bit whatever other images there are (:mod:`clmoe_cli.method.reproducible`).
    """
    of = name or kind(input_shape)

    def block(inputs: Tensor) -> tuple[Tensor]:
        return (calculated(inputs.reshape(-1, *input_shape), of, eye).to(inputs.dtype),)

    found: Tensor | None = None
    done = 0
    with torch.inference_mode():
        for part in x.split(CHUNK):
            (values,) = in_blocks(part, BLOCK, block)
            if found is None:
                found = values.new_empty((len(x), values.shape[1]))
            found[done : done + len(values)] = values
            done += len(values)
            on_done(done)
    return torch.empty((0, width(input_shape, name, eye))) if found is None else found


def calculated(x: Tensor, name: str, eye: AnyEye | None = None) -> Tensor:
    """Features [N, d] of that name, float64 or of the type of ``x``, of inputs [N, …], all of them at once."""
    found = _BY_NAME[_fixed(name)](x)
    if name == _fixed(name):
        return found
    assert eye is not None
    return torch.cat([found.double(), eye.look(x if isinstance(eye, NetworkEye) else shrunk(x))], dim=1)


def _fixed(name: str) -> str:
    """Name of the features without those of an eye."""
    return name.removesuffix(EYED).removesuffix(ADAPTED).removesuffix(PRETRAINED)


def new_eye(x: Rows, input_shape: Sequence[int], rng: torch.Generator) -> Eye:
    """An eye made from images [N, D]; of more than ``eyes.IMAGES``, so many are taken evenly."""
    some = torch.linspace(0, len(x) - 1, min(len(x), eyes.IMAGES)).round().long()
    return eyes.fit(torch.cat([shrunk(part.reshape(-1, *input_shape)) for part in taken(x, some).split(CHUNK)]), rng)


def _shrunk_to(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrunk(x: Tensor) -> Tensor:
    """Images [N, C, H, W] with a longer side of at most ``LONGEST``."""
    if max(x.shape[-2:]) <= LONGEST:
        return x
    return F.interpolate(x, size=_shrunk_to(*x.shape[-2:]), mode="bilinear", antialias=True)


def gabor(size: int, orientations: int, cycles: float) -> Tensor:
    """Complex Gabor filters as real and imaginary parts, [2 · orientations, 1, size, size] float64.

    Without mean, of unit length; first all real parts, then all imaginary ones.
    """
    at = torch.arange(size, dtype=torch.float64) - size // 2
    envelope = torch.exp(-(at[:, None].square() + at[None, :].square()) / (2 * (size / 5) ** 2))
    angle = torch.arange(orientations, dtype=torch.float64) * math.pi / orientations
    along = at[None, None, :] * angle.cos()[:, None, None] + at[None, :, None] * angle.sin()[:, None, None]
    phase = 2 * math.pi * cycles / size * along
    waves = envelope * torch.cat([phase.cos(), phase.sin()])
    waves -= envelope * (waves.sum(dim=(1, 2), keepdim=True) / envelope.sum())
    return (waves / waves.square().sum(dim=(1, 2), keepdim=True).sqrt())[:, None]


@cache
def _bank(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    first = [gabor(size, ORIENTATIONS[0], CYCLES[0]).to(dtype) for size in SIZES]
    return first, gabor(SECOND, ORIENTATIONS[1], CYCLES[1]).to(dtype)


@cache
def _windows(height: int, width: int) -> Tensor:
    """Weights [height · width, GRID²] float64 of the windows of a map, so that all maps' means are one product."""
    return torch.kron(_along(height), _along(width)).T.contiguous()


def _along(n: int) -> Tensor:
    """Weights [GRID, n] of Gaussian windows, each adding up to one, over n evenly spaced positions."""
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    centre = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    weights = torch.exp(-(at - centre[:, None]).square() / (2 * SPREAD**2))
    return weights / weights.sum(dim=1, keepdim=True)


def _modulus(x: Tensor, filters: Tensor) -> Tensor:
    """Moduli [N, orientations, h, w] of the responses of images [N, 1, H, W] at every second position."""
    reach = filters.shape[-1] // 2
    done = F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), filters, stride=2)
    real, imaginary = done.chunk(2, dim=1)
    return real.square().addcmul_(imaginary, imaginary).sqrt_()


def _averaged(x: Tensor) -> Tensor:
    """Square roots of the means over the windows, [N, …] to [N, d] float64, of unit length unless they are faint."""
    return F.normalize(_means(x).sqrt(), eps=FAINT)


def _means(x: Tensor) -> Tensor:
    """Means over the windows, [N, C, H, W] to [N, C · GRID²] float64."""
    return (x.flatten(2).double() @ _windows(*x.shape[-2:])).flatten(1)


def _of_images(x: Tensor) -> Tensor:
    n, channels = x.shape[:2]
    x = shrunk(x)
    colours = []
    if channels == 3:
        opponents = torch.tensor(OPPONENTS, dtype=torch.float64)
        x = torch.einsum("oc,nchw->nohw", opponents, x.double()).to(x.dtype)
        colours = [COLOUR * F.normalize(_means(x), eps=FAINT)]
    first_bank, second_bank = _bank(x.dtype)
    single = x.reshape(n * channels, 1, *x.shape[2:])
    first = torch.cat([_modulus(single, filters) for filters in first_bank], dim=1)
    second = _modulus(first.reshape(-1, 1, *first.shape[2:]), second_bank)
    scattered = [_averaged(part.reshape(n, -1, *part.shape[2:])) for part in (first, second)]
    return torch.cat([*scattered, *colours], dim=1)


def _of_colours(x: Tensor) -> Tensor:
    """The same of colour pictures, but the opponents' second layer in a quarter of the windows: fine shapes are in the
    brightness."""
    found = _of_images(x)
    maps = len(SIZES) * ORIENTATIONS[0]
    parts = [3 * maps, maps * ORIENTATIONS[1], 2 * maps * ORIENTATIONS[1], 3]
    first, bright, opponents, colours = found.split([part * GRID**2 for part in parts], dim=1)
    blocks = opponents.reshape(x.shape[0], -1, GRID // 2, 2, GRID // 2, 2)
    return torch.cat([first, bright, blocks.sum(dim=(3, 5)).flatten(1) / 2, colours], dim=1)


def _as_they_are(x: Tensor) -> Tensor:
    """The columns of vectors; of more than ``MOST_COLUMNS``, so many random projections of them, which keep distances
    (Johnson & Lindenstrauss 1984)."""
    return _few(columns(x, VECTOR))


def _rooted(x: Tensor) -> Tensor:
    return _few(columns(x, ROOT))


def columns(x: Tensor, name: str) -> Tensor:
    """The columns [N, D] float64 of vectors [N, …] as features ``VECTOR`` or ``ROOT`` have them, before they are
    projected; square roots keep the sign."""
    flat = x.flatten(1).double()
    return flat.sign() * flat.abs().sqrt() if name == ROOT else flat


def _few(flat: Tensor) -> Tensor:
    size = flat.shape[1]
    return flat if size <= MOST_COLUMNS else flat @ projection(size)


@lru_cache(maxsize=1)
def projection(size: int) -> Tensor:
    """Random projections [size, MOST_COLUMNS] float64 of vectors with so many columns, always the same ones."""
    drawn = torch.randn((size, MOST_COLUMNS), generator=torch.Generator().manual_seed(0))
    return drawn.double() / math.sqrt(MOST_COLUMNS)


def _of_vectors(x: Tensor) -> Tensor:
    flat = x.flatten(1).double()
    size = flat.shape[1]
    # The constant keeps a vector's length from being lost when all is scaled to unit length.
    known = F.normalize(F.pad(flat, (0, 1), value=math.sqrt(size) / 4))
    return F.normalize((known @ _directions(size)).relu())


@lru_cache(maxsize=1)
def _directions(size: int) -> Tensor:
    return torch.randn((size + 1, VECTOR_WIDTH), generator=torch.Generator().manual_seed(0)).double()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.flatten(1).double())


_BY_NAME: Mapping[str, Callable[[Tensor], Tensor]] = {
    "scattering-1": _of_images,
    OLD_COLOURED: _of_images,
    COLOURED: _of_colours,
    OLD_VECTOR: _of_vectors,
    VECTOR: _as_they_are,
    ROOT: _rooted,
    UNIT: _unit,
}
"""What computes the features of a name, from inputs [N, …]."""
