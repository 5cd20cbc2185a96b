"""Simulate the scanner: image properties of each site, contrast of each patient, coil profile, blur and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ScannerSite:
    """Image properties of one hospital.

    Attributes:
        field_of_view_mm: Side of the image.
        gain: Factor of the brightness.
        gamma: Exponent of the brightness.
        blur_mm: Standard deviation of the blur.
        noise: Standard deviation of the noise in each of two channels.
        shading: Relative loss of signal from the top of the image to its bottom.
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
    """Brightness of tissues in one exam, thickness of skull and subcutaneous fat, and coil profile.

    Attributes:
        vessel: Brightness of blood with contrast agent.
        marrow: Brightness of the middle layer of the skull.
        coil: (6,), coefficients of the polynomial gain over the image.
        gamma: Exponent of the brightness, in addition to the site's own.
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


def make_contrast(patient_rng: np.random.Generator, exam_rng: np.random.Generator) -> Contrast:
    """Sample the contrast of one exam: the patient's own, with small differences between exams."""

    def sample(low: float, high: float) -> float:
        return float(patient_rng.uniform(low, high) * (1 + 0.03 * exam_rng.standard_normal()))

    grey = sample(0.27, 0.38)
    return Contrast(
        fluid=sample(0.09, 0.15),
        grey=grey,
        white=grey * (1 + float(patient_rng.uniform(0.12, 0.42))),
        fat=sample(0.70, 1.0),
        vessel=sample(0.65, 0.95),
        marrow=sample(0.14, 0.42),
        skull_mm=float(patient_rng.uniform(5.0, 8.5)),
        fat_mm=float(patient_rng.uniform(3.0, 7.0)),
        coil=(patient_rng.normal(0, 0.16, 6) + exam_rng.normal(0, 0.02, 6)).astype(np.float32),
        gamma=sample(0.9, 1.12),
    )


def scan(image: np.ndarray, site: ScannerSite, contrast: Contrast, rng: np.random.Generator) -> np.ndarray:
    """Return the image, float32 (size, size), that the scanner of a site would acquire of ``image``."""
    from scipy.ndimage import gaussian_filter

    size = image.shape[0]
    blurred = gaussian_filter(image, site.blur_mm * size / site.field_of_view_mm, mode="nearest", truncate=3.0)
    signal = np.power(np.maximum(blurred, 0), np.float32(site.gamma * contrast.gamma))
    signal = signal * _coil_gain(size, site, contrast)
    noise = rng.standard_normal((2, size, size), np.float32) * np.float32(site.noise)
    magnitude = np.hypot(site.gain * signal + noise[0], noise[1])  # magnitude images have Rician noise
    return np.asarray(np.minimum(magnitude, 1.2), np.float32)


def _coil_gain(size: int, site: ScannerSite, contrast: Contrast) -> np.ndarray:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    across, down = axis[None, :], axis[:, None]
    c = contrast.coil
    gain = 1 + (c[0] - site.shading / 2) * down + c[1] * across + c[2] * down * across
    gain = gain + c[3] * (down**2 - 0.3) + c[4] * (across**2 - 0.3)
    return np.asarray(np.clip(gain, 0.35, 1.8), np.float32)
