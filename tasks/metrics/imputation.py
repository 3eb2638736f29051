"""Imputation: removed pixels are filled in from those that are left.

Noisy linear imputation: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution
Methods", ICML 2022, section 4. Inpainting: Telea, "An Image Inpainting Technique Based on the Fast Marching
Method", Journal of Graphics Tools 2004.

The linear system is solved for many images at once by conjugate gradients on the pixel grid, without building
its matrix. The preconditioner is one multigrid V-cycle, which makes the number of steps small and nearly the
same for all images, shares and sizes (Tatebe, "The Multigrid Preconditioned Conjugate Gradient Method",
1993).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from explainers.numerics.batching import in_chunks
from explainers.numerics.randomness import seed_of, uniform

Imputation = Literal["linear", "telea"]
TOLERANCE = 2e-3  # change of a pixel, in [0, 1], below which an image is finished
RADIUS = 3  # pixels, of Telea's neighbourhood, as in P-TAME's evaluation
NOTHING_LEFT = 0.5  # mid-grey, for images of which all is removed
_STEPS = 100  # most steps of conjugate gradients; by default 1 to 6 are taken
_SMALL = 64  # pixels per side
_CACHED = 1 << 18  # numbers per tensor on the CPU; larger tensors would not fit into its caches
_NORMAL = seed_of("imputation")  # makes the noise independent of tie-breaks


def imputed(images: Tensor, removed: Tensor, how: Imputation = "linear") -> Tensor:
    """Fill in the pixels that are removed, without noise.

    Parameters
    ----------
    images
        (N, C, H, W) floats, pixels in [0, 1]. The values of removed pixels do not matter.
    removed
        (N, H, W) bool.
    how
        ``linear``: each removed pixel is the weighted mean of its neighbours, removed ones included, see
        :func:`linear`. ``telea``: inpainted, see :func:`telea`.

    Returns
    -------
    (N, C, H, W)
        The images. Each depends on itself alone. CHOICE: an image without any pixel left becomes mid-grey,
        0.5.
    """
    lost = removed.flatten(1).all(1)[:, None, None]
    filled = {"linear": linear, "telea": telea}[how](images, removed & ~lost)
    return filled.masked_fill_(lost[:, None], NOTHING_LEFT)


def normal(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw (B, \\*shape) float32 standard normal numbers from seeds (B,) int64 (Box and Muller 1958)."""
    count = math.prod(shape)
    pairs = uniform(seeds ^ _NORMAL, count + count % 2).view(len(seeds), 2, -1)
    radius, angle = (-2 * (1 - pairs[:, 0]).log()).sqrt(), 2 * math.pi * pairs[:, 1]
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return both[:, :count].reshape(-1, *shape)


def linear(images: Tensor, removed: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Fill in removed pixels so that each is the weighted mean of its 8 neighbours.

    The weight of the neighbours above, below, left and right is 1/6, and that of diagonal neighbours is 1/12.
    At the border, weights are divided by their sum.

    The equation of a removed pixel is: sum of weights * own value - weighted values of removed neighbours =
    weighted values of the neighbours that are left. The system is positive definite. An image is finished
    after the first step at which a V-cycle would change none of its values by more than ``tolerance``,
    however many steps other images of the batch take. That step is still taken, so the remaining error is
    smaller: with the default, at most 1e-3, and 1e-4 in the root mean square, for photographs of 224x224
    pixels with 10 to 90 % of their pixels removed.

    Parameters
    ----------
    images
        (N, C, H, W), pixels in [0, 1].
    removed
        (N, H, W) bool. At least one pixel of each image must be left.
    tolerance
        In units of the pixels.

    Returns
    -------
    (N, C, H, W)
        The images with removed pixels filled in.
    """
    size = images[0].numel()
    chunk = max(1, _CACHED // size) if images.device.type == "cpu" else len(images)
    return in_chunks(lambda rows: _solve(images[rows], removed[rows], tolerance), len(images), chunk)


def telea(images: Tensor, removed: Tensor) -> Tensor:
    """Inpaint removed pixels of images with OpenCV, with radius 3, on the CPU, one image after the other.

    OpenCV inpaints colours of 8 bits, so filled-in pixels of three channels are multiples of 1/255; the
    others stay as they are. CHOICE: removed pixels are set to mid-grey first. OpenCV reads some of them, and
    otherwise its result would depend, by up to 9/255, on the values that were removed.

    Other numbers of channels are inpainted one by one, as floats. CHOICE: what is left of each is stretched
    to 0 to 255 for that, because OpenCV adds up to 1.4 to a value whatever the scale, and removed pixels are
    set to the middle of it first.

    Parameters
    ----------
    images
        (N, C, H, W), pixels in [0, 1].
    removed
        (N, H, W) bool.
    """
    import cv2  # imported here, since nothing else in this file needs it

    gone, holes = removed[:, None], removed.byte().cpu().numpy()

    def inpainted(pixels: NDArray, hole: NDArray) -> NDArray:
        return cv2.inpaint(np.ascontiguousarray(pixels), hole, RADIUS, cv2.INPAINT_TELEA)

    if images.shape[1] == 3:
        left = images.masked_fill(gone, NOTHING_LEFT)
        pixels = (left * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        filled = [inpainted(image, hole) for image, hole in zip(pixels, holes, strict=True)]
        made_up = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).to(images) / 255
    else:
        low = images.masked_fill(gone, torch.inf).amin((2, 3), keepdim=True)
        scale = (images.masked_fill(gone, -torch.inf).amax((2, 3), keepdim=True) - low) / 255
        shares = (images - low) / scale.clamp(min=torch.finfo(images.dtype).tiny)
        floats = shares.masked_fill(gone, 255 * NOTHING_LEFT).float().cpu().numpy()
        bands = [[inpainted(band, hole) for band in each] for each, hole in zip(floats, holes, strict=True)]
        made_up = torch.from_numpy(np.array(bands)).to(images).clamp(0, 255) * scale + low
    return torch.where(removed[:, None], made_up, images)


@dataclass(frozen=True)
class _Grid:
    """The system on one grid: ``total`` x - :func:`_neighbours` of x = b where ``unknown``, else x = 0.

    Weights are 6 times those of the paper: 1, and 1/2 for diagonal neighbours. They are the same on coarser
    grids, whose cells are 2x2 cells of the finer grid. A cell is unknown if one of its pixels is. Its
    ``total`` is the sum of the weights of its neighbouring cells and of the weights between its unknown
    pixels and known ones.

    Attributes
    ----------
    unknown
        (N, 1, h, w), 0 or 1; 0 everywhere for an image that does not need a grid as coarse as this.
    total
        (N, 1, h, w) or (1, 1, h, w), positive.
    share
        ``unknown / total``.
    """

    unknown: Tensor
    total: Tensor
    share: Tensor


def _solve(images: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """Run conjugate gradients from a pyramid's fill; images that are finished no longer change."""
    grids = _grids(removed[:, None].to(images.dtype))
    known, total = 1 - grids[0].unknown, grids[0].total
    found = _pyramid(images * known, known)
    residual = _neighbours(found).addcmul_(found, total, value=-1)  # only unknown pixels of it are used
    tiny = torch.finfo(images.dtype).tiny
    going = torch.ones_like(known[:, :, :1, :1], dtype=torch.bool)
    direction, before = torch.zeros_like(found), torch.ones_like(known[:, :, :1, :1])
    for _ in range(_STEPS):
        change = _v_cycle(grids, residual)
        product = _dot(residual, change)
        direction = torch.addcmul(change, direction, product / before)
        before = product.clamp(min=tiny)
        applied = _neighbours(direction).addcmul_(direction, total, value=-1)
        step = before / _dot(direction, applied).clamp(max=-tiny) * going
        found.addcmul_(direction, step, value=-1)
        going &= change.abs_().amax((1, 2, 3), keepdim=True) > tolerance
        if not going.any():
            break
        residual.addcmul_(applied, step, value=-1)
    return found


def _v_cycle(grids: list[_Grid], b: Tensor) -> Tensor:
    """Solve ``grids[0]`` for (N, C, h, w) b roughly, by a symmetric, positive definite function of b."""
    grid = grids[0]
    # Two Jacobi steps. With these weights, no damping is better: they reduce the part that coarser grids
    # cannot represent by a factor of 3. The first starts from zero, so its residual is the neighbours' part.
    first = b * grid.share
    x = first
    if len(grids) > 1:
        residual = _neighbours(x).mul_(grid.unknown)
        correction = _finer(_v_cycle(grids[1:], _coarser(residual)), b.shape[-2:])
        x = torch.addcmul(first, correction, grid.unknown)
    return torch.addcmul(first, _neighbours(x), grid.share)


def _grids(unknown: Tensor) -> list[_Grid]:
    """Make the grids for (N, 1, H, W) ``unknown``, from the pixels to the coarsest that an image needs.

    An image needs a coarser grid if one of its cells is enclosed: if the weights between the cell and known
    pixels add up to less than that of one side.
    """
    total = _neighbours(torch.ones_like(unknown[:1]))
    held = (total - _neighbours(unknown)).mul_(unknown)  # by known pixels
    grids = [_Grid(unknown, total, unknown / total)]
    while (enclosed := (held < unknown).flatten(1).any(1)).any():
        held, unknown = _sums(held), ((_sums(unknown) > 0) & enclosed[:, None, None, None]).to(held.dtype)
        total = (_neighbours(torch.ones_like(unknown[:1])) + held).clamp(min=0.5)
        grids.append(_Grid(unknown, total, unknown / total))
    return grids


def _pyramid(values: Tensor, known: Tensor) -> Tensor:
    """Fill in (N, C, h, w) ``values``, which are zero where not ``known``, from larger and larger cells.

    The result is smoothed; it is the start of the iteration.
    """
    if known.all():
        return values
    counts = _sums(known)
    coarse = _pyramid(_sums(values) / counts.clamp(min=1), (counts > 0).to(known.dtype))
    filled = torch.where(known > 0, values, _finer(coarse, values.shape[-2:]))
    share = (1 - known) / _neighbours(torch.ones_like(known[:1]))
    for _ in range(2 if _is_small(known.shape) else 1):
        filled = torch.addcmul(values, _neighbours(filled), share)
    return filled


# Large grids are summed slice by slice, which is fastest on the CPU. On small grids, the calls themselves
# would be the whole cost; there, a product with a matrix along each axis does the same in a few calls.


def _neighbours(x: Tensor) -> Tensor:
    """Sum the neighbours of each pixel: above, below, left and right with weight 1, diagonal with 1/2."""
    if _is_small(x.shape):
        down, across = (_matrices(side, x.dtype, x.device)[0] for side in x.shape[-2:])
        return (down @ x @ across).mul_(0.5).sub_(x, alpha=2)
    wide = torch.empty_like(x)  # each pixel twice, plus its neighbours on the left and on the right
    torch.mul(x[..., :1], 2, out=wide[..., :1])
    torch.add(x[..., :-1], x[..., 1:], alpha=2, out=wide[..., 1:])
    wide[..., :-1].add_(x[..., 1:])
    sums = torch.sub(wide, x, alpha=2)
    sums[..., 1:, :].add_(wide[..., :-1, :], alpha=0.5)
    sums[..., :-1, :].add_(wide[..., 1:, :], alpha=0.5)
    return sums


def _finer(coarse: Tensor, size: torch.Size) -> Tensor:
    """Interpolate bilinearly to ``size`` (H, W), twice as fine; the border is repeated beyond itself."""
    if _is_small(size):
        down, across = (_matrices(side, coarse.dtype, coarse.device)[1] for side in size)
        return down @ coarse @ across.T
    x = F.pad(coarse, (1, 1, 1, 1), mode="replicate")
    n, c, h, w = coarse.shape
    wide = x.new_empty(n, c, h + 2, 2 * w)
    torch.lerp(x[..., 1:-1], x[..., :-2], 0.25, out=wide[..., ::2])
    torch.lerp(x[..., 1:-1], x[..., 2:], 0.25, out=wide[..., 1::2])
    fine = x.new_empty(n, c, 2 * h, 2 * w)
    torch.lerp(wide[..., 1:-1, :], wide[..., :-2, :], 0.25, out=fine[..., ::2, :])
    torch.lerp(wide[..., 1:-1, :], wide[..., 2:, :], 0.25, out=fine[..., 1::2, :])
    return fine[..., : size[0], : size[1]]


def _coarser(x: Tensor) -> Tensor:
    """Apply the transpose of :func:`_finer`, without which the V-cycle would not be symmetric."""
    if _is_small(x.shape):
        down, across = (_matrices(side, x.dtype, x.device)[1] for side in x.shape[-2:])
        return down.T @ x @ across
    x = F.pad(_even(x), (1, 1, 1, 1), mode="replicate")
    x = (x[..., :-2:2, :] + x[..., 3::2, :]).add_(x[..., 1:-1:2, :] + x[..., 2::2, :], alpha=3)
    # Along rows, whose values are contiguous, it is faster to make all sums and drop half of them.
    x = x[..., 1:] + x[..., :-1]
    x = x[..., 1:] + x[..., :-1]
    return (x[..., ::2] + x[..., 1::2]).mul_(1 / 16)


@cache
def _matrices(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (side, side) and (side, cells) matrices that do along one axis what large grids do by slices."""
    with torch.inference_mode(False):  # the cached matrices are also used outside the caller's mode
        each = torch.eye(-(-side // 2), dtype=dtype, device=device)
        stretched = F.interpolate(each[None], scale_factor=2, mode="linear")[0, :, :side].T.contiguous()
        beside = torch.ones(side - 1, dtype=dtype, device=device)
        own = 2 * torch.eye(side, dtype=dtype, device=device)
        return own + beside.diag(1) + beside.diag(-1), stretched


def _is_small(shape: torch.Size) -> bool:
    return max(shape[-2:]) <= _SMALL


def _sums(x: Tensor) -> Tensor:
    """Sum cells of 2x2 values; cells at the end of an odd side have fewer."""
    x = _even(x)
    x = x[..., ::2, :] + x[..., 1::2, :]
    return x[..., ::2] + x[..., 1::2]


def _even(x: Tensor) -> Tensor:
    """Add a row or a column of zeros where the side is odd."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the (N, 1, 1, 1) inner products of (N, C, h, w) tensors."""
    return (a * b).sum((1, 2, 3), keepdim=True)
