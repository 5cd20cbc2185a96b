"""What lies outside the skull, as a cartoon: face, sinuses, eyes, jaw, neck. Places as in :mod:`.volume`.

None of it is measured; ellipsoids stand where an adult head has the part, so that a slice looks like one of a head.
"""

from __future__ import annotations

import numpy as np

from hsadml_dist.shards.sources.phantom.volume import VoxelGrid, ellipsoid_distance

Triple = tuple[float, float, float]

AIR, CORTEX, EYE, FLUID, MUSCLE, CORD, MARROW, MUCOSA, FAT = 0.02, 0.06, 0.16, 0.14, 0.34, 0.48, 0.58, 0.74, 0.95

HEAD_SHAPES: tuple[tuple[Triple, Triple], ...] = (
    ((0, 38, -66), (62, 52, 60)),
    ((0, 0, -62), (69, 70, 52)),
    ((0, 58, -108), (40, 32, 24)),
    ((0, 94, -58), (12, 15, 18)),
    ((0, 88, -44), (8, 10, 22)),
    ((48, 26, -30), (19, 32, 34)),
    ((-48, 26, -30), (19, 32, 34)),
    ((50, 8, -84), (18, 30, 36)),
    ((-50, 8, -84), (18, 30, 36)),
    ((0, -37, -130), (62, 52, 110)),
    ((78, -22, -42), (7, 13, 24)),
    ((-78, -22, -42), (7, 13, 24)),
)
"""(centre, half axes) of face, chin, nose and its bridge, temples, jaws, neck and ears."""

_PAIRED: tuple[tuple[Triple, Triple, float], ...] = (
    ((34, 52, -38), (19, 30, 17), FAT),
    ((50, 22, -30), (11, 20, 22), MUSCLE),
    ((33, 64, -38), (13.5, 13.5, 13.5), MUCOSA),
    ((33, 64, -38), (12, 12, 12), EYE),
    ((33, 72, -38), (5, 2.5, 5), MUSCLE),
    ((44, 52, -34), (3, 17, 5), MUSCLE),
    ((22, 52, -38), (2.5, 17, 5), MUSCLE),
    ((28, 34, -38), (2.5, 18, 2.5), CORD),
    ((33, 48, -28), (4, 18, 2), MUSCLE),
    ((33, 48, -49), (4, 18, 2), MUSCLE),
    ((28, 48, -66), (15, 19, 16), MUCOSA),
    ((28, 48, -66), (13, 17, 14), AIR),
    ((8, 52, -40), (5, 20, 9), MUCOSA),
    ((7, 56, -40), (3.5, 6, 7), AIR),
    ((8, 42, -40), (3.5, 6, 7), AIR),
    ((9, 48, -66), (6, 32, 15), MUCOSA),
    ((6, 52, -58), (2, 28, 7), AIR),
    ((13, 48, -70), (2, 28, 7), AIR),
    ((54, 34, -76), (8, 18, 18), MUCOSA),
    ((52, 14, -88), (8, 16, 28), MUSCLE),
    ((46, 6, -92), (5, 13, 32), CORTEX),
    ((46, 6, -92), (3, 10, 29), MARROW),
    ((34, 10, -78), (9, 16, 22), MUSCLE),
    ((36, 52, -114), (6, 26, 11), CORTEX),
    ((36, 52, -114), (3.5, 23, 8), MARROW),
    ((56, -8, -84), (11, 13, 24), MUCOSA),
    ((48, -26, -44), (16, 12, 13), CORTEX),
    ((54, -30, -48), (4, 4, 5), MUCOSA),
    ((45, -25, -54), (4, 4, 5), AIR),
    ((36, -22, -46), (5, 5, 5), AIR),
    ((48, -22, -40), (3, 5, 3), AIR),
    ((62, -18, -44), (12, 3, 3), AIR),
    ((17, 2, -37), (7, 11, 8), MUCOSA),
    ((15, 0, -37), (3.2, 4, 6), CORTEX),
    ((30, -8, -80), (4, 4, 40), CORTEX),
    ((36, -14, -90), (5.5, 6, 44), MUCOSA),
    ((20, -82, -100), (17, 18, 60), MUSCLE),
    ((44, -60, -100), (12, 20, 55), MUSCLE),
    ((31, -72, -100), (1.5, 22, 50), MUCOSA),
    ((22, -36, -104), (9, 9, 60), MUSCLE),
)
"""(centre, half axes, brightness) of parts that have a mirror image across the midline."""

_MIDLINE: tuple[tuple[Triple, Triple, float], ...] = (
    ((0, 80, -6), (17, 4, 11), AIR),
    ((0, -12, -50), (11, 11, 22), MARROW),
    ((0, 20, -45), (19, 17, 12), CORTEX),
    ((0, 20, -45), (17, 15, 10), MUCOSA),
    ((0, 20, -45), (16, 14, 9), AIR),
    ((0, 2, -34), (6.5, 5, 4), MUCOSA),
    ((0, 44, -80), (24, 34, 3), CORTEX),
    ((0, 42, -86), (24, 32, 3), MUCOSA),
    ((0, 40, -102), (26, 34, 16), MUSCLE),
    ((0, 76, -92), (28, 7, 14), CORTEX),
    ((0, 74, -114), (16, 7, 12), CORTEX),
    ((0, 75, -115), (13, 4, 8), MARROW),
    ((0, 5, -82), (13, 8, 30), MUCOSA),
    ((0, 5, -88), (9, 5, 34), AIR),
    ((0, 0, -126), (11, 6, 22), AIR),
    ((0, -84, -112), (2, 16, 55), FAT),
    ((0, -46, -108), (13, 10, 62), CORTEX),
    ((0, -46, -108), (12, 9, 60), FLUID),
    ((0, -45, -108), (6, 5, 62), CORD),
    ((0, -20, -82), (9, 9, 16), MARROW),
    ((0, -22, -104), (12, 10, 7.5), MARROW),
    ((0, -23, -121), (12, 10, 7.5), MARROW),
    ((0, -23, -138), (12, 10, 7.5), MARROW),
)


def paint_soft_tissue(texture: VoxelGrid) -> VoxelGrid:
    """Return the brightness of what lies outside the skull, uint8 0 ... 255 at 2 mm; muscle where nothing is named."""
    shape, step = (91, 122, 77), 2
    soft = VoxelGrid(
        values=np.full(shape, MUSCLE, np.float32), origin=(-90.0, -126.0, -152.0), step=step, mode="nearest"
    )
    for (x, y, z), half, brightness in _PAIRED:
        for side in (-1, 1):
            _paint(soft, (side * x, y, z), half, brightness)
    for centre, half, brightness in _MIDLINE:
        _paint(soft, centre, half, brightness)
    grain = texture.values[np.ix_(*[np.arange(count) % texture.values.shape[0] for count in shape])]
    values = np.clip(soft.values * (1 + 0.16 * grain), 0, 1) * 255
    return VoxelGrid(values=np.rint(values).astype(np.uint8), origin=soft.origin, step=step, mode="nearest")


def _paint(soft: VoxelGrid, centre: Triple, half: Triple, brightness: float) -> None:
    """Lay an ellipsoid over what was painted before, with an edge one voxel wide."""
    reach = (half[0] + 2, half[1] + 2, half[2] + 2)
    window = soft.window(centre, reach)
    x, y, z = soft.places()
    places = (x[window[0]], y[:, window[1]], z[:, :, window[2]])
    cover = np.clip(0.5 - ellipsoid_distance(places, centre, half) / 2, 0, 1)
    soft.values[window] += cover * (np.float32(brightness) - soft.values[window])
