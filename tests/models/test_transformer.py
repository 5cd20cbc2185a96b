import pytest
import torch

from hsadml_dist.models.residual import VisionTransformer, vit_small_patches


def tiny(image_size=32, dims=2):
    return VisionTransformer(1, dims, image_size, width=24, layers=2, heads=3)


def test_size_and_shape_are_as_documented():
    net, width = vit_small_patches(1, 2, 112)
    assert width == 192
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(2.7e6, rel=0.05)
    assert net(torch.zeros(1, 1, 112, 112)).shape == (1, 192)


@pytest.mark.parametrize("size", [8, 15, 32, 60, 100, 112])
def test_any_image_size_has_its_positions(size):
    assert tiny(size)(torch.zeros(2, 1, size, size)).shape == (2, 24)


def test_volumes():
    assert tiny(16, dims=3)(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 24)


def test_training_and_judging_are_the_same_function():
    net, images = tiny().double(), torch.randn(4, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net.train()(images), net.eval()(images), rtol=1e-9, atol=1e-9)


def test_an_images_features_do_not_depend_on_the_rest_of_the_batch():
    net, images = tiny().double(), torch.randn(3, 1, 32, 32, dtype=torch.float64)
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images), alone, rtol=1e-12, atol=1e-12)


def test_where_a_patch_lies_matters():
    net, image = tiny(), torch.randn(1, 1, 32, 32)
    assert not torch.allclose(net(image), net(image.roll(8, dims=3)), atol=1e-4)


def test_every_weight_gets_a_gradient():
    net = tiny()
    net(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
