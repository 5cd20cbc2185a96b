"""Embeddings on a map of the sphere, and the angles behind the picture. Pure numpy.

Shapes: N slices, D components, C classes, M rows of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SphereProjection:
    """Points and centres on a map, and each class's angles in the full space.

    Attributes:
        point_N2: Longitude and latitude of each slice, radians.
        label_N: Class of each slice, int64.
        centre_C2: Longitude and latitude of each class centre, radians.
        explained: Share of the squared length that each of the three axes holds.
        count_C: Slices of each class, int64.
        dim: D, the components of the embeddings.
        own_angle_C: Mean angle to the own centre, degrees; NaN where a class has no slice.
        other_angle_C: Mean angle to the nearest other centre, degrees; NaN likewise.
    """

    point_N2: Floats
    label_N: Ints
    centre_C2: Floats
    explained: tuple[float, float, float]
    count_C: Ints
    dim: int
    own_angle_C: Floats
    other_angle_C: Floats


def project_on_sphere(emb_ND: Floats, label_N: Ints, centre_CD: Floats) -> SphereProjection:
    """Return the map of unit embeddings along their first three principal axes.

    The axes are those of the uncentred second moment of the unit embeddings, so that an angle to the origin keeps its
    meaning; the three components are scaled back to unit length. The first two axes span the equator, which is turned
    so that its widest gap without points becomes the edge of the map.
    """
    unit_ND, unit_CD = _unit(emb_ND), _unit(centre_CD)
    axes_D3, explained = _principal_axes(unit_ND)
    point_N2, centre_C2 = _angles(unit_ND @ axes_D3), _angles(unit_CD @ axes_D3)
    turn = _widest_gap(point_N2[:, 0])
    for map_M2 in (point_N2, centre_C2):
        map_M2[:, 0] = np.remainder(map_M2[:, 0] - turn, 2 * np.pi) - np.pi
    own_N, other_N = _centre_angles(unit_ND, label_N, unit_CD)
    count_C = np.bincount(label_N, minlength=len(centre_CD))
    return SphereProjection(
        point_N2=point_N2,
        label_N=label_N,
        centre_C2=centre_C2,
        explained=explained,
        count_C=count_C,
        dim=unit_ND.shape[1],
        own_angle_C=_class_means(own_N, label_N, count_C),
        other_angle_C=_class_means(other_N, label_N, count_C),
    )


def _unit(rows_MD: Floats) -> Floats:
    rows = np.asarray(rows_MD, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _principal_axes(unit_ND: Floats) -> tuple[Floats, tuple[float, float, float]]:
    values, vectors = np.linalg.eigh(unit_ND.T @ unit_ND)
    # eigh counts upwards; a space of two dimensions gets a third axis that holds nothing.
    axes = np.zeros((unit_ND.shape[1], 3))
    shares = np.zeros(3)
    kept = min(3, unit_ND.shape[1])
    axes[:, :kept] = vectors[:, ::-1][:, :kept]
    shares[:kept] = np.clip(values[::-1][:kept], 0, None) / max(float(np.clip(values, 0, None).sum()), 1e-300)
    # An eigenvector's sign is free: the largest component is made positive, so that the map is the same each time.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    first, second, third = (float(share) for share in shares)
    return axes * np.where(signs == 0, 1, signs), (first, second, third)


def _angles(point_M3: Floats) -> Floats:
    point_M3 = _unit(point_M3)
    longitude = np.arctan2(point_M3[:, 1], point_M3[:, 0])
    return np.stack([longitude, np.arcsin(np.clip(point_M3[:, 2], -1, 1))], axis=1)


def _widest_gap(longitude_N: Floats) -> float:
    """Return the longitude in the middle of the widest gap between neighbouring points."""
    if len(longitude_N) == 0:
        return -np.pi
    ordered = np.sort(longitude_N)
    gaps = np.diff(ordered, append=ordered[0] + 2 * np.pi)
    widest = int(gaps.argmax())
    return float(ordered[widest] + gaps[widest] / 2)


def _centre_angles(unit_ND: Floats, label_N: Ints, unit_CD: Floats) -> tuple[Floats, Floats]:
    angle_NC = np.degrees(np.arccos(np.clip(unit_ND @ unit_CD.T, -1, 1)))
    rows = np.arange(len(label_N))
    own_N = angle_NC[rows, label_N]
    angle_NC[rows, label_N] = np.inf
    return own_N, angle_NC.min(axis=1)


def _class_means(value_N: Floats, label_N: Ints, count_C: Ints) -> Floats:
    total_C = np.bincount(label_N, weights=value_N, minlength=len(count_C))
    return np.where(count_C > 0, total_C / np.maximum(count_C, 1), np.nan)
