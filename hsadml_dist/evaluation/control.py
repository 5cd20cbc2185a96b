"""The control that every figure stands beside: the nearest neighbour in raw pixels, without any learning.

Where slices of one person lie in both training and test, this control alone reaches nine tenths on many public sets:
a figure that does not clear it says nothing of the model.

Shapes: N images, H x W pixels, P = SIDE * SIDE pixels of a thumbnail, Q queries, R references.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hsadml_dist.comm import Comm
from hsadml_dist.evaluation.knn import search

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
