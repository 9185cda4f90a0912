"""What the scanner adds: blur, noise, streaks, shading, ghosts."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from compact.phantom.fields import Float, Point, smooth_noise
from compact.phantom.settings import PhantomSettings


def finish_ct(
    rng: np.random.Generator, image: Float, rho: Float, spacing: Point, settings: PhantomSettings
) -> Float:
    """Blur, add correlated noise and streaks, and crop to the scanner's value range."""
    blur = rng.uniform(*settings.blur)
    image = gaussian_filter(image, [blur / spacing[0], blur / spacing[1], 0.35], truncate=2.5)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    grain = min(rng.uniform(0.4, 1.5) / spacing[0], 1.2)  # the kernel is set in mm
    noise = gaussian_filter(noise, [grain, grain, rng.uniform(0, 0.5)], truncate=2.5)
    noise *= np.float32(rng.uniform(*settings.noise)) / noise.std()
    # photons are scarcest in the middle of the body
    noise *= np.float32(1.25) - np.clip(rho / 350, 0, np.float32(0.6))
    image += noise
    if rng.random() < settings.streaks:
        lines = rng.standard_normal((1, *image.shape[1:]), dtype=np.float32)
        lines = np.repeat(lines, image.shape[0], axis=0)
        lines += 2 * gaussian_filter1d(
            rng.standard_normal(image.shape, dtype=np.float32), 14, axis=0
        )
        image += lines / lines.std() * np.float32(rng.uniform(1, 5)) * (rho < 170)
    if rng.random() < 0.25:  # reconstruction circle
        i, j = (np.linspace(-1, 1, n)[:, None] for n in image.shape[:2])
        image[(i**2 + (j.T) ** 2) > 1.05] = -1024
    return np.clip(image, -1024, 3071)


def finish_mr(
    rng: np.random.Generator, image: Float, spacing: Point, settings: PhantomSettings
) -> Float:
    """Blur, shade by a coil profile, optionally ghost, and add Rician noise."""
    blur = 1.5 * rng.uniform(*settings.blur)
    image = gaussian_filter(image, [blur / spacing[0], blur / spacing[1], 0.35], truncate=2.5)
    top = float(np.percentile(image[::4, ::4], 98))
    bias = smooth_noise(rng, image.shape, (2, 2, 1))
    image *= np.exp(np.float32(rng.uniform(*settings.bias)) * bias)
    if rng.random() < settings.ghosting:
        shift = int(rng.integers(8, max(9, image.shape[1] // 3)))
        image += np.float32(rng.uniform(0.01, 0.06)) * np.roll(image, shift, axis=1)
    sigma = np.float32(rng.uniform(*settings.mr_noise) * top)
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    if rng.random() < 0.5:
        noise = gaussian_filter(noise, [0, 0.5, 0.5, 0])
    return np.clip(np.hypot(image + noise[0], noise[1]), 0, 32767)
