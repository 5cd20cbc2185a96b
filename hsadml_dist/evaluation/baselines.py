"""Baselines without training: nearest neighbours in raw pixels and in low-level image statistics.

Every accuracy is reported next to these two. Where slices of one patient are in both training and test data, raw pixels
alone reach 90 % on many public data sets; an accuracy that is not above them is no evidence for the model.

The low-level features describe acquisition and brightness: the distribution of grey levels, the size and position of
the foreground, sharpness and grain. None of them describes the shape of a tumour, so scanner, sequence, plane and crop
alone explain the accuracy of this baseline. Unlike raw pixels it can do well without the same patient on both sides; it
therefore also shows a leak between class and hospital that remains after a split by patient.

Thumbnails are scaled from each image's darkest to its brightest pixel, so absolute intensities are not seen.

Shapes: B or N images, H x W pixels, P = S * S pixels of a thumbnail, F features, Q queries, R gallery slices,
L grey levels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.knn import search
from hsadml_dist.evaluation.metrics import Floats, Ints

Bytes = npt.NDArray[np.uint8]

THUMBNAIL_SIDE = 64
"""Side of a thumbnail in pixels."""

BINS = 16
PERCENTILES = (5, 25, 50, 75, 95)
FEATURE_NAMES = (
    *(f"histogram_{bin_}" for bin_ in range(BINS)),
    "mean",
    "deviation",
    *(f"percentile_{percent}" for percent in PERCENTILES),
    "foreground",
    "centroid_row",
    "centroid_column",
    "gradient_mean",
    "gradient_deviation",
    "gradient_rough",
    "contrast",
    "homogeneity",
)
"""The low-level features, in column order."""

LEVELS = 256
ROUGH_GRADIENT = 32
"""Gradient, in grey levels per pixel, above which a pixel counts as rough."""

MAX_DEVIATIONS = 64.0
"""Standardised features are clipped to this many standard deviations."""

STEPS = 2.0**16
"""Grid steps per standard deviation: sums of products of :data:`FEATURE_NAMES` features stay below 2**50, which fp64
holds exactly."""

FEATURE_BLOCK = 8192
"""Gallery rows compared at a time; affects the memory use only."""

_IMAGE_BATCH = 256


def thumbnails(image_B1HW: torch.Tensor) -> torch.Tensor:
    """Return area-averaged thumbnails (B, P), uint8, scaled from each image's darkest to its brightest pixel.

    The scaling makes the baseline independent of how the loader scales intensities. A constant image becomes 0.
    """
    small = functional.adaptive_avg_pool2d(image_B1HW.to(torch.float32), THUMBNAIL_SIDE)[:, 0].flatten(1)
    low, high = small.amin(dim=1, keepdim=True), small.amax(dim=1, keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return torch.round((small - low) / span * 255).to(torch.uint8)


def nearest_pixels(queries_QP: torch.Tensor, gallery_RP: torch.Tensor, *, block: int) -> torch.Tensor:
    """Return the position (Q,) of each thumbnail's nearest neighbour by Euclidean distance; ties go to the lowest."""
    return _nearest_euclidean(queries_QP.double(), gallery_RP.double(), block)


def nearest_pixels_distributed(
    queries_QP: torch.Tensor, gallery_RP: torch.Tensor, comm: Comm, *, block: int
) -> torch.Tensor:
    """Call :func:`nearest_pixels` with rows distributed over ranks. Collective: every rank must call it.

    Every rank returns the positions for the queries of all ranks.
    """
    return comm.all_gather_rows(nearest_pixels(queries_QP, comm.all_gather_rows(gallery_RP), block=block))


def features(thumbnail_NP: Bytes) -> Floats:
    """Return the low-level features (N, F) of thumbnails of 256 grey levels; columns as in :data:`FEATURE_NAMES`.

    - histogram_0 ... 15: share of pixels in 16 equal bins of grey level;
    - mean, deviation and percentiles (nearest rank) of the grey level;
    - foreground: share of pixels above Otsu's threshold (Otsu, IEEE Trans. SMC 9, 1979: the level that separates the
      means of the two sides most; of equal levels the lowest), and its centroid in units of the side, 0 to 1; .5 if no
      pixel is foreground;
    - gradient: mean and deviation of its magnitude by differences of adjacent pixels, in grey levels per pixel, and the
      share of pixels where it is above 32;
    - contrast and homogeneity of grey levels in 16 bins of horizontally and vertically adjacent pixels (Haralick et
      al., IEEE Trans. SMC 3, 1973: f2, and f5, the inverse difference moment).

    All sums are over whole numbers, so they do not depend on the order of summation or on the machine.

    Raises:
        DataError: The images are not square.
    """
    side = math.isqrt(thumbnail_NP.shape[1])
    if side < 2 or side * side != thumbnail_NP.shape[1]:
        raise DataError(f"thumbnails: {thumbnail_NP.shape[1]} pixels are not a square of at least 2 x 2")
    parts = [
        _features(thumbnail_NP[start : start + _IMAGE_BATCH].reshape(-1, side, side).astype(np.int64))
        for start in range(0, len(thumbnail_NP), _IMAGE_BATCH)
    ]
    return np.concatenate([np.empty((0, len(FEATURE_NAMES))), *parts])


def nearest_low_level(queries_QF: Floats, gallery_RF: Floats, *, block: int = FEATURE_BLOCK) -> Ints:
    """Return the position (Q,) of each query's nearest neighbour by :func:`features`; ties go to the lowest.

    The distance is Euclidean. Features are standardised by mean and deviation of the gallery, so that each has the same
    weight whatever its unit; a feature that is constant in the gallery is left out. Standardised features are clipped
    at 64 deviations and rounded to 1/65536 of a deviation: distances are then whole numbers, and the result does not
    depend on how a matrix product is cut into blocks.

    Raises:
        DataError: The gallery is empty.
    """
    if not len(gallery_RF):
        raise DataError("gallery: it is empty; the low-level baseline needs at least one slice")
    if not len(queries_QF):
        return np.empty(0, dtype=np.int64)
    mean_F = gallery_RF.mean(axis=0)
    deviation_F = np.where(np.ptp(gallery_RF, axis=0) > 0, gallery_RF.std(axis=0), np.inf)
    gallery, queries = (
        torch.from_numpy(np.rint(np.clip((rows - mean_F) / deviation_F, -MAX_DEVIATIONS, MAX_DEVIATIONS) * STEPS))
        for rows in (gallery_RF, queries_QF)
    )
    return _nearest_euclidean(queries, gallery, block).numpy()


def _nearest_euclidean(queries_QD: torch.Tensor, gallery_RD: torch.Tensor, block: int) -> torch.Tensor:
    # |q - r|^2 = |q|^2 - 2 (q . r - |r|^2 / 2): whole numbers keep the bracket exact, and the largest is the nearest.
    bias_R = -(gallery_RD * gallery_RD).sum(dim=1) / 2
    return search(queries_QD, gallery_RD, bias_R, k=1, block=block)[1][:, 0]


def _features(image_NSS: Ints) -> Floats:
    count_NL = _counts(image_NSS.reshape(len(image_NSS), -1), LEVELS)
    columns = [*_grey(count_NL), *_foreground(image_NSS, count_NL), *_gradient(image_NSS), *_texture(image_NSS)]
    return np.stack(columns, axis=1)


def _counts(value_NP: Ints, values: int) -> Ints:
    """Return the counts (N, values) of the values 0 ... ``values`` - 1 in each row."""
    row_N1 = np.arange(len(value_NP))[:, None] * values
    return np.bincount((row_N1 + value_NP).ravel(), minlength=len(value_NP) * values).reshape(-1, values)


def _mean_and_deviation(total_N: Ints, squares_N: Ints, count: int) -> tuple[Floats, Floats]:
    """Return mean and standard deviation from exact sums; nothing is rounded before the last step."""
    return total_N / count, np.sqrt(squares_N * count - total_N * total_N) / count


def _grey(count_NL: Ints) -> list[Floats]:
    pixels, level_L = int(count_NL[0].sum()), np.arange(LEVELS)
    histogram = count_NL.reshape(-1, BINS, LEVELS // BINS).sum(axis=2) / pixels
    moments = _mean_and_deviation((count_NL * level_L).sum(axis=1), (count_NL * level_L**2).sum(axis=1), pixels)
    below_NL = count_NL.cumsum(axis=1) * 100
    ranks = [(below_NL >= percent * pixels).argmax(axis=1).astype(np.float64) for percent in PERCENTILES]
    return [*histogram.T, *moments, *ranks]


def _otsu(count_NL: Ints) -> Ints:
    """Return the threshold (N,), above which levels are foreground; the brightest level for a constant image."""
    level_L = np.arange(LEVELS)
    low_NL, low_sum_NL = count_NL.cumsum(axis=1), (count_NL * level_L).cumsum(axis=1)
    pixels_N1, sum_N1 = low_NL[:, -1:], low_sum_NL[:, -1:]
    sides_NL = low_NL * (pixels_N1 - low_NL)
    separation_NL = (sum_N1 * low_NL - pixels_N1 * low_sum_NL).astype(np.float64) ** 2
    between_NL = np.divide(separation_NL, sides_NL, out=np.full(separation_NL.shape, -1.0), where=sides_NL > 0)
    return np.where(between_NL.max(axis=1) >= 0, between_NL.argmax(axis=1), LEVELS - 1)


def _foreground(image_NSS: Ints, count_NL: Ints) -> list[Floats]:
    mask_NSS = image_NSS > _otsu(count_NL)[:, None, None]
    side, area_N = image_NSS.shape[1], mask_NSS.sum(axis=(1, 2))
    index_S = np.arange(side)
    centroids = [
        np.divide(
            (mask_NSS.sum(axis=axis) * index_S).sum(axis=1),
            area_N * (side - 1),
            out=np.full(len(area_N), 0.5),
            where=area_N > 0,
        )
        for axis in (2, 1)
    ]
    return [area_N / side**2, *centroids]


def _gradient(image_NSS: Ints) -> list[Floats]:
    down = image_NSS[:, 1:, :-1] - image_NSS[:, :-1, :-1]
    right = image_NSS[:, :-1, 1:] - image_NSS[:, :-1, :-1]
    square = (down * down + right * right).reshape(len(image_NSS), -1)
    # In whole 256ths of a level: a square root rounds the same on every machine, a sum of them does not.
    magnitude = np.rint(np.sqrt(square) * LEVELS).astype(np.int64)
    mean, deviation = _mean_and_deviation(magnitude.sum(axis=1), (magnitude**2).sum(axis=1), square.shape[1])
    return [mean / LEVELS, deviation / LEVELS, (square > ROUGH_GRADIENT**2).sum(axis=1) / square.shape[1]]


def _texture(image_NSS: Ints) -> list[Floats]:
    """Return contrast and homogeneity; both need only the counts of differences of adjacent pixels."""
    bin_NSS = image_NSS // (LEVELS // BINS)
    down, right = np.abs(np.diff(bin_NSS, axis=1)), np.abs(np.diff(bin_NSS, axis=2))
    difference = np.concatenate([steps.reshape(len(image_NSS), -1) for steps in (down, right)], axis=1)
    count_NB, difference_B = _counts(difference, BINS), np.arange(BINS)
    # Weights in whole 2**-32, for the same reason as the gradient magnitudes.
    weight_B = np.rint(2.0**32 / (1 + difference_B**2)).astype(np.int64)
    pairs = difference.shape[1]
    return [(count_NB * difference_B**2).sum(axis=1) / pairs, (count_NB * weight_B).sum(axis=1) / pairs / 2.0**32]
