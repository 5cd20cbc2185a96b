"""The raw-pixel control against slow loops."""

from __future__ import annotations

import numpy as np
import torch

from hsadml_dist.evaluation.control import THUMBNAIL_SIDE, nearest_pixels, thumbnails


def test_thumbnails_average_whole_blocks() -> None:
    image = torch.rand(3, 1, 128, 192, generator=torch.Generator().manual_seed(0))
    small = image[:, 0].reshape(3, THUMBNAIL_SIDE, 2, THUMBNAIL_SIDE, 3).mean(dim=(2, 4)).flatten(1)
    low, high = small.amin(1, keepdim=True), small.amax(1, keepdim=True)
    expected = (small - low) / (high - low) * 255
    assert thumbnails(image).shape == (3, THUMBNAIL_SIDE * THUMBNAIL_SIDE)
    assert (thumbnails(image).float() - expected).abs().max() <= 0.501


def test_thumbnails_do_not_depend_on_the_loaders_scaling_and_survive_a_flat_image() -> None:
    image = torch.randint(0, 4096, (2, 1, 80, 80), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(thumbnails(image), thumbnails(image / 4096 * 8 - 4))
    assert thumbnails(torch.full((1, 1, 80, 80), 7.0)).unique().tolist() == [0]


def test_the_nearest_is_that_of_whole_number_distances_and_ties_go_to_the_lowest() -> None:
    generator = np.random.default_rng(2)
    references = generator.integers(0, 3, (60, 4)) * 100
    queries = generator.integers(0, 3, (40, 4)) * 100
    distances = ((queries[:, None] - references[None]) ** 2).sum(axis=2)
    assert ((distances == distances.min(axis=1, keepdims=True)).sum(axis=1) > 1).sum() > 5
    rows = [torch.from_numpy(rows).to(torch.uint8) for rows in (queries, references)]
    for block in (1, 7, 1000):
        assert nearest_pixels(*rows, block=block).tolist() == distances.argmin(axis=1).tolist()
