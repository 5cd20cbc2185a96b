import pytest
import torch

from hsadml_dist.models.residual import ResidualNet, resnet_gn_small, resnet_gn_tiny


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("build", "features", "size"), [(resnet_gn_small, 208, 1.0e6), (resnet_gn_tiny, 32, 20e3)], ids=["small", "tiny"]
)
def test_size_and_shape_are_as_documented(build, features, size):
    net, width = build(1, 2, 112)
    assert width == features
    assert count(net) == pytest.approx(size, rel=0.05)
    assert net(torch.zeros(2, 1, 64, 48)).shape == (2, features)


def test_volumes():
    net, width = resnet_gn_tiny(2, 3, 16)
    assert net(torch.zeros(2, 2, 16, 16, 16)).shape == (2, width)


def test_an_images_features_do_not_depend_on_the_rest_of_the_batch():
    net = resnet_gn_tiny(1, 2, 32)[0].double()
    images = torch.randn(5, 1, 32, 32, dtype=torch.float64)
    together = net(images)
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_every_weight_gets_a_gradient():
    net = ResidualNet(1, 2, widths=(16, 16, 32))
    net(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_a_block_without_change_of_shape_has_a_free_shortcut():
    net = ResidualNet(1, 2, widths=(16, 32))
    assert isinstance(net.stages[0].shortcut, torch.nn.Identity)
    assert isinstance(net.stages[1].shortcut, torch.nn.Conv2d)
