"""What the scanner does to a picture: each site's habits, a contrast a person, uneven coils, blur and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ScannerSite:
    """One hospital's habits.

    Attributes:
        field_of_view_mm: Side of the picture.
        gain: Factor on the brightness.
        gamma: Exponent of the brightness.
        blur_mm: Standard deviation of the blur.
        noise: Standard deviation of the noise in each of two channels.
        shading: Loss of signal from the picture's top to its bottom, as a part.
    """

    field_of_view_mm: float
    gain: float
    gamma: float
    blur_mm: float
    noise: float
    shading: float


SITES = (
    ScannerSite(field_of_view_mm=240.0, gain=1.0, gamma=1.0, blur_mm=0.4, noise=0.012, shading=0.10),
    ScannerSite(field_of_view_mm=256.0, gain=0.9, gamma=0.85, blur_mm=0.9, noise=0.018, shading=0.35),
    ScannerSite(field_of_view_mm=230.0, gain=1.05, gamma=1.2, blur_mm=0.6, noise=0.022, shading=-0.15),
    ScannerSite(field_of_view_mm=250.0, gain=0.95, gamma=1.1, blur_mm=0.5, noise=0.030, shading=0.20),
)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One exam's brightness of tissues, and its coil.

    Attributes:
        fluid: Brightness of fluid; so are the others of their tissue.
        grey: Grey matter.
        white: White matter.
        fat: Fat under the skin.
        vessel: Blood with contrast agent.
        marrow: The skull's middle layer.
        skull_mm: The skull's thickness.
        fat_mm: The thickness of the fat under the skin.
        coil: (6,): gain over the picture, as coefficients of a polynomial.
        gamma: Exponent of the brightness beside the site's own.
    """

    fluid: float
    grey: float
    white: float
    fat: float
    vessel: float
    marrow: float
    skull_mm: float
    fat_mm: float
    coil: np.ndarray
    gamma: float


def make_contrast(person: np.random.Generator, exam: np.random.Generator) -> Contrast:
    """Draw one exam's contrast: the person's, and small differences of the exam."""

    def about(low: float, high: float) -> float:
        return float(person.uniform(low, high) * (1 + 0.03 * exam.standard_normal()))

    grey = about(0.27, 0.38)
    return Contrast(
        fluid=about(0.09, 0.15),
        grey=grey,
        white=grey * (1 + float(person.uniform(0.12, 0.42))),
        fat=about(0.70, 1.0),
        vessel=about(0.65, 0.95),
        marrow=about(0.14, 0.42),
        skull_mm=float(person.uniform(5.0, 8.5)),
        fat_mm=float(person.uniform(3.0, 7.0)),
        coil=(person.normal(0, 0.16, 6) + exam.normal(0, 0.02, 6)).astype(np.float32),
        gamma=about(0.9, 1.12),
    )


def scan(image: np.ndarray, site: ScannerSite, contrast: Contrast, rng: np.random.Generator) -> np.ndarray:
    """Return the picture, float32 (size, size), that a site's scanner would make of ``image``."""
    from scipy.ndimage import gaussian_filter

    size = image.shape[0]
    blurred = gaussian_filter(image, site.blur_mm * size / site.field_of_view_mm, mode="nearest", truncate=3.0)
    shown = np.power(np.maximum(blurred, 0), np.float32(site.gamma * contrast.gamma)) * _coil(size, site, contrast)
    noise = rng.standard_normal((2, size, size), np.float32) * np.float32(site.noise)
    magnitude = np.hypot(site.gain * shown + noise[0], noise[1])  # a magnitude picture carries Rician noise
    return np.asarray(np.minimum(magnitude, 1.2), np.float32)


def _coil(size: int, site: ScannerSite, contrast: Contrast) -> np.ndarray:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    across, down = axis[None, :], axis[:, None]
    c = contrast.coil
    gain = 1 + (c[0] - site.shading / 2) * down + c[1] * across + c[2] * down * across
    gain = gain + c[3] * (down**2 - 0.3) + c[4] * (across**2 - 0.3)
    return np.asarray(np.clip(gain, 0.35, 1.8), np.float32)
