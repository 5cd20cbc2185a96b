"""Training-free baselines: nearest neighbours in raw pixels and in low-level image statistics.

Every figure is reported next to these two. Where slices of one patient are in both training and test data, the raw
pixels alone reach 90 % on many public data sets; an accuracy that is not above them says nothing about the model.

The low-level features describe acquisition and brightness: the distribution of grey levels, the size and position of
the foreground, sharpness and grain. None of them describes the shape of a tumour. The accuracy of this baseline can be
had from scanner, sequence, plane and crop alone. Unlike raw pixels it does not need the same patient on both sides to do
well, so that it also shows a leak between class and hospital that remains after a split by patient.

Thumbnails are scaled from each image's darkest to its brightest pixel, so absolute intensities are not seen.

Shapes: B or N images, H x W pixels, P = S * S pixels of a thumbnail, F features, Q or M queries, R gallery rows,
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

THUMBNAIL_SIDE = 64
"""Side of a thumbnail in pixels."""


def thumbnails(image_B1HW: torch.Tensor) -> torch.Tensor:
    """Return area-averaged thumbnails (B, P) with 256 grey levels from each image's darkest to its brightest, uint8.

    The levels make the control independent of how the loader scales intensities. An image of one value becomes 0.
    """
    small = functional.adaptive_avg_pool2d(image_B1HW.to(torch.float32), THUMBNAIL_SIDE)[:, 0].flatten(1)
    low, high = small.amin(dim=1, keepdim=True), small.amax(dim=1, keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return torch.round((small - low) / span * 255).to(torch.uint8)


def nearest_pixels(queries_QP: torch.Tensor, references_RP: torch.Tensor, *, block: int) -> torch.Tensor:
    """Return the position (Q,) of each thumbnail's nearest reference by Euclidean distance; ties: the lowest."""
    queries, references = queries_QP.to(torch.float64), references_RP.to(torch.float64)
    # |q - r|^2 = |q|^2 - 2 (q . r - |r|^2 / 2): whole grey levels keep the bracket exact, see knn.
    bias = -(references * references).sum(dim=1) / 2
    return search(queries, references, bias, k=1, block=block)[1][:, 0]


def nearest_pixels_distributed(
    queries_QP: torch.Tensor, references_RP: torch.Tensor, comm: Comm, *, block: int
) -> torch.Tensor:
    """As :func:`nearest_pixels`, for rows spread over ranks; every rank returns the answers to all queries."""
    return comm.all_gather_rows(nearest_pixels(queries_QP, comm.all_gather_rows(references_RP), block=block))


Bytes = npt.NDArray[np.uint8]

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
"""The features, in the order of their columns."""

LEVELS = 256
ROUGH_GRADIENT = 32
"""Gradient, in grey levels a pixel, above which a pixel counts as rough."""

MAX_DEVIATIONS = 64.0
"""Deviations at which a standardised feature is cut off, either way."""

STEPS = 2.0**16
"""Steps per deviation: sums of products of :data:`NAMES` features stay below 2**50, which fp64 holds exactly."""

_PICTURES_AT_A_TIME = 256
_REFERENCES_AT_A_TIME = 8192


def features(thumbnail_NP: Bytes) -> Floats:
    """Return the low-level features (N, F) of thumbnails of 256 grey levels; F as in :data:`NAMES`.

    - histogram_0 ... 15: shares of the pixels in 16 equal bins of grey level;
    - mean, deviation and percentiles (nearest rank) of the grey level;
    - foreground: share of the pixels above Otsu's threshold (Otsu, IEEE Trans. SMC 9, 1979: the level that separates
      the two sides' means most; of equals the lowest), and its centroid in units of the side, 0 to 1; .5 where no
      pixel is foreground;
    - gradient: mean and deviation of its magnitude by differences of neighbours, in grey levels a pixel, and the share
      of pixels where it is above 32;
    - contrast and homogeneity of grey levels in 16 bins of horizontal and vertical neighbours (Haralick et al., IEEE
      Trans. SMC 3, 1973: f2, and f5, the inverse difference moment).

    All sums are over whole numbers, so that they do not depend on the order of adding, thus on no machine.

    Args:
        thumbnail_NP: Square pictures, row by row, uint8.

    Raises:
        DataError: Pictures that are not square.
    """
    side = math.isqrt(thumbnail_NP.shape[1])
    if side < 2 or side * side != thumbnail_NP.shape[1]:
        raise DataError(f"thumbnails of {thumbnail_NP.shape[1]} pixels: must be squares of at least 2 x 2")
    parts = [
        _features(thumbnail_NP[start : start + _PICTURES_AT_A_TIME].reshape(-1, side, side).astype(np.int64))
        for start in range(0, len(thumbnail_NP), _PICTURES_AT_A_TIME)
    ]
    return np.concatenate([np.empty((0, len(FEATURE_NAMES))), *parts])


def nearest_low_level(test_MF: Floats, reference_RF: Floats) -> Ints:
    """Return the position (M,) of each test slice's nearest reference by :func:`features`; ties: the lowest.

    Features are standardised by the references' mean and deviation, so that each counts alike whatever its unit; one
    that is the same in all references tells nothing and is left out. The distance is Euclidean. Standardised features
    are rounded to 1/65536 of a deviation and cut off at 64 deviations: distances are then whole numbers, and the
    answer does not depend on how a matrix product is cut up.

    Raises:
        DataError: No reference.
    """
    if not len(reference_RF):
        raise DataError("no reference slices: the low-level control needs at least one")
    if not len(test_MF):
        return np.empty(0, dtype=np.int64)
    references, tests = (torch.from_numpy(rows) for rows in _standardised(reference_RF, test_MF))
    # |q - r|^2 = |q|^2 - 2 (q . r - |r|^2 / 2): the nearest has the largest bracket.
    bias = -(references * references).sum(dim=1) / 2
    return search(tests, references, bias, k=1, block=_REFERENCES_AT_A_TIME)[1][:, 0].numpy()


def _standardised(reference_RF: Floats, test_MF: Floats) -> tuple[Floats, Floats]:
    """Return both in steps of the references' deviations, as whole numbers."""
    mean_F = reference_RF.mean(axis=0)
    deviation_F = np.where(np.ptp(reference_RF, axis=0) > 0, reference_RF.std(axis=0), np.inf)
    references, tests = (
        np.rint(np.clip((rows - mean_F) / deviation_F, -MAX_DEVIATIONS, MAX_DEVIATIONS) * STEPS)
        for rows in (reference_RF, test_MF)
    )
    return references, tests


def _features(picture_NSS: Ints) -> Floats:
    count_NL = _counts(picture_NSS.reshape(len(picture_NSS), -1), LEVELS)
    columns = [*_grey(count_NL), *_foreground(picture_NSS, count_NL), *_gradient(picture_NSS), *_texture(picture_NSS)]
    return np.stack(columns, axis=1)


def _counts(value_NP: Ints, values: int) -> Ints:
    """Return how often each of the values 0 ... ``values`` - 1 occurs in each row (N, values)."""
    row_N1 = np.arange(len(value_NP))[:, None] * values
    return np.bincount((row_N1 + value_NP).ravel(), minlength=len(value_NP) * values).reshape(-1, values)


def _mean_and_deviation(total_N: Ints, squares_N: Ints, count: int) -> tuple[Floats, Floats]:
    """Return both from the sums of whole numbers and of their squares: nothing is rounded before the last step."""
    return total_N / count, np.sqrt(squares_N * count - total_N * total_N) / count


def _grey(count_NL: Ints) -> list[Floats]:
    pixels, level_L = int(count_NL[0].sum()), np.arange(LEVELS)
    histogram = count_NL.reshape(-1, BINS, LEVELS // BINS).sum(axis=2) / pixels
    moments = _mean_and_deviation((count_NL * level_L).sum(axis=1), (count_NL * level_L**2).sum(axis=1), pixels)
    below_NL = count_NL.cumsum(axis=1) * 100
    ranks = [(below_NL >= percent * pixels).argmax(axis=1).astype(np.float64) for percent in PERCENTILES]
    return [*histogram.T, *moments, *ranks]


def _otsu(count_NL: Ints) -> Ints:
    """Return the threshold (N,): levels above it are foreground; the brightest level of a picture of one value."""
    level_L = np.arange(LEVELS)
    low_NL, low_sum_NL = count_NL.cumsum(axis=1), (count_NL * level_L).cumsum(axis=1)
    pixels_N1, sum_N1 = low_NL[:, -1:], low_sum_NL[:, -1:]
    sides_NL = low_NL * (pixels_N1 - low_NL)
    apart_NL = (sum_N1 * low_NL - pixels_N1 * low_sum_NL).astype(np.float64) ** 2
    between_NL = np.divide(apart_NL, sides_NL, out=np.full(apart_NL.shape, -1.0), where=sides_NL > 0)
    return np.where(between_NL.max(axis=1) >= 0, between_NL.argmax(axis=1), LEVELS - 1)


def _foreground(picture_NSS: Ints, count_NL: Ints) -> list[Floats]:
    mask_NSS = picture_NSS > _otsu(count_NL)[:, None, None]
    side, area_N = picture_NSS.shape[1], mask_NSS.sum(axis=(1, 2))
    at_S = np.arange(side)
    centroids = [
        np.divide(
            (mask_NSS.sum(axis=axis) * at_S).sum(axis=1),
            area_N * (side - 1),
            out=np.full(len(area_N), 0.5),
            where=area_N > 0,
        )
        for axis in (2, 1)
    ]
    return [area_N / side**2, *centroids]


def _gradient(picture_NSS: Ints) -> list[Floats]:
    down = picture_NSS[:, 1:, :-1] - picture_NSS[:, :-1, :-1]
    right = picture_NSS[:, :-1, 1:] - picture_NSS[:, :-1, :-1]
    square = (down * down + right * right).reshape(len(picture_NSS), -1)
    # In whole 256ths of a level: a root rounds alike everywhere, a sum of roots does not.
    magnitude = np.rint(np.sqrt(square) * LEVELS).astype(np.int64)
    mean, deviation = _mean_and_deviation(magnitude.sum(axis=1), (magnitude**2).sum(axis=1), square.shape[1])
    return [mean / LEVELS, deviation / LEVELS, (square > ROUGH_GRADIENT**2).sum(axis=1) / square.shape[1]]


def _texture(picture_NSS: Ints) -> list[Floats]:
    """Return contrast and homogeneity; both need only how often each difference of neighbours occurs."""
    bin_NSS = picture_NSS // (LEVELS // BINS)
    down, right = np.abs(np.diff(bin_NSS, axis=1)), np.abs(np.diff(bin_NSS, axis=2))
    apart = np.concatenate([steps.reshape(len(picture_NSS), -1) for steps in (down, right)], axis=1)
    count_NB, apart_B = _counts(apart, BINS), np.arange(BINS)
    # Weights in whole 2**-32, for the same reason as the magnitudes above.
    weight_B = np.rint(2.0**32 / (1 + apart_B**2)).astype(np.int64)
    pairs = apart.shape[1]
    return [(count_NB * apart_B**2).sum(axis=1) / pairs, (count_NB * weight_B).sum(axis=1) / pairs / 2.0**32]
