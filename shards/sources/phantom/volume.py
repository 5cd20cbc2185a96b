"""A regular grid of values over the head, read at any place by linear interpolation.

Places are in millimetres of the MNI152 template: x to the patient's right, y to the front, z up. Shapes in names:
``_3P`` places, (3, ...) float32; ``_P`` one value a place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class VoxelGrid:
    """Values on a grid.

    Attributes:
        values: (x, y, z), any real dtype.
        origin: The place of the first value, in millimetres.
        step: Distance between neighbours in millimetres, the same along all axes.
        mode: What lies beyond the grid, as scipy.ndimage names it: ``constant`` (zero), ``nearest`` or ``grid-wrap``.
    """

    values: np.ndarray
    origin: tuple[float, float, float]
    step: float
    mode: str = "constant"

    def at(self, places_3P: np.ndarray) -> np.ndarray:
        """Return float32 values at places in millimetres."""
        from scipy.ndimage import map_coordinates

        start = np.asarray(self.origin, np.float32).reshape(3, *[1] * (places_3P.ndim - 1))
        index_3P = (places_3P - start) / np.float32(self.step)
        sampled: np.ndarray = map_coordinates(self.values, index_3P, np.float32, order=1, mode=self.mode)
        return sampled

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the grid's x, y and z in millimetres, shaped to broadcast to the grid."""
        x, y, z = (
            (start + self.step * np.arange(count)).astype(np.float32)
            for start, count in zip(self.origin, self.values.shape, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def window(
        self, centre: tuple[float, float, float], half: tuple[float, float, float]
    ) -> tuple[slice, slice, slice]:
        """Return the part of the grid that holds the box ``centre`` plus and minus ``half``."""
        spans = []
        for axis in range(3):
            low = (centre[axis] - half[axis] - self.origin[axis]) / self.step
            high = (centre[axis] + half[axis] - self.origin[axis]) / self.step
            spans.append(slice(max(0, int(low)), max(0, int(high) + 2)))
        return spans[0], spans[1], spans[2]


def ellipsoid_distance(
    places: tuple[np.ndarray, np.ndarray, np.ndarray],
    centre: tuple[float, float, float],
    half: tuple[float, float, float],
) -> np.ndarray:
    """Return the distance to an ellipsoid's surface in millimetres, negative inside; exact at the surface only."""
    scaled = [(at - c) / h for at, c, h in zip(places, centre, half, strict=True)]
    least = np.float32(1e-3)  # in the very middle the quotient below has no value
    radius = np.maximum(np.sqrt(sum(s * s for s in scaled)), least)
    slope = np.maximum(np.sqrt(sum((s / h) ** 2 for s, h in zip(scaled, half, strict=True))), least / max(half))
    return np.asarray(radius * (radius - 1) / slope)
