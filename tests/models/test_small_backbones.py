import pytest
import torch

from hsadml_dist.models.small_backbones import (
    ResidualNet,
    VisionTransformer,
    resnet_gn_small,
    resnet_gn_tiny,
    vit_small_patches,
)


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("build", "features", "size"), [(resnet_gn_small, 208, 1.0e6), (resnet_gn_tiny, 32, 20e3)], ids=["small", "tiny"]
)
def test_resnet_size_and_shape_are_as_documented(build, features, size):
    net, width = build(1, 2, 112)
    assert width == features
    assert count(net) == pytest.approx(size, rel=0.05)
    assert net(torch.zeros(2, 1, 64, 48)).shape == (2, features)


def test_resnet_accepts_volumes():
    net, width = resnet_gn_tiny(2, 3, 16)
    assert net(torch.zeros(2, 2, 16, 16, 16)).shape == (2, width)


def test_resnet_features_do_not_depend_on_the_batch():
    net = resnet_gn_tiny(1, 2, 32)[0].double()
    images = torch.randn(5, 1, 32, 32, dtype=torch.float64)
    together = net(images)
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_resnet_gives_every_weight_a_gradient():
    net = ResidualNet(1, 2, widths=(16, 16, 32))
    net(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_residual_block_of_same_shape_has_identity_shortcut():
    net = ResidualNet(1, 2, widths=(16, 32))
    assert isinstance(net.stages[0].shortcut, torch.nn.Identity)
    assert isinstance(net.stages[1].shortcut, torch.nn.Conv2d)


def tiny(image_size=32, dims=2):
    return VisionTransformer(1, dims, image_size, width=24, layers=2, heads=3)


def test_vit_size_and_shape_are_as_documented():
    net, width = vit_small_patches(1, 2, 112)
    assert width == 192
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(2.7e6, rel=0.05)
    assert net(torch.zeros(1, 1, 112, 112)).shape == (1, 192)


@pytest.mark.parametrize("size", [8, 15, 32, 60, 100, 112])
def test_vit_accepts_any_image_size(size):
    assert tiny(size)(torch.zeros(2, 1, size, size)).shape == (2, 24)


def test_vit_accepts_volumes():
    assert tiny(16, dims=3)(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 24)


def test_vit_is_the_same_in_training_and_evaluation():
    net, images = tiny().double(), torch.randn(4, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net.train()(images), net.eval()(images), rtol=1e-9, atol=1e-9)


def test_vit_features_do_not_depend_on_the_batch():
    net, images = tiny().double(), torch.randn(3, 1, 32, 32, dtype=torch.float64)
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images), alone, rtol=1e-12, atol=1e-12)


def test_vit_depends_on_patch_positions():
    net, image = tiny(), torch.randn(1, 1, 32, 32)
    assert not torch.allclose(net(image), net(image.roll(8, dims=3)), atol=1e-4)


def test_vit_gives_every_weight_a_gradient():
    net = tiny()
    net(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
