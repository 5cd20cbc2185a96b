import copy

import pytest
import torch

from hsadml_dist.errors import ConfigError
from hsadml_dist.models.network import build_model
from hsadml_dist.models.pretrained import load_pretrained


def build(name="monai_resnet18", seed=0, **settings):
    return build_model(name, embedding_dim=4, seed=seed, **{"image_size": 32, **settings})


def randomised(model):
    """Give statistics and scales values that a mix-up would show."""
    torch.manual_seed(9)
    return {n: torch.rand_like(t) + 0.5 if t.is_floating_point() else t + 7 for n, t in model.state_dict().items()}


def equal(model, tensors):
    return all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_load_pretrained_network_is_bit_identical():
    tensors, model = randomised(build()), build(seed=1)
    report = load_pretrained(model, tensors)
    assert equal(model, tensors)
    assert (report.loaded, report.dropped, report.adapted, report.missing) == (len(tensors), (), (), ())
    assert str(report) == f"{len(tensors)} tensors loaded"


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_load_pretrained_backbone_keeps_initial_neck(prefix):
    tensors, model = randomised(build()), build(seed=1)
    neck = model.neck.weight.detach().clone()
    given = {prefix + n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
    report = load_pretrained(model, given)
    assert equal(model.backbone, {n.removeprefix("backbone."): t for n, t in tensors.items()})
    assert torch.equal(model.neck.weight, neck)
    assert report.missing == ("neck.weight", "neck.bias")
    assert "neck.weight, neck.bias initialised from the seed" in str(report)


def test_classifier_is_dropped_and_reported():
    from monai.networks.nets import resnet18

    torch.manual_seed(2)
    theirs, model = resnet18(spatial_dims=2, n_input_channels=1, num_classes=10).eval(), build().eval()
    report = load_pretrained(model, theirs.state_dict())
    assert report.dropped == ("backbone.fc.weight", "backbone.fc.bias")
    theirs.fc = torch.nn.Identity()
    image = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.backbone(image), theirs(image))


def test_rgb_convolution_is_summed_for_grey_images():
    from monai.networks.nets import resnet18

    theirs, model = resnet18(spatial_dims=2, n_input_channels=3, num_classes=10).eval(), build().eval()
    report = load_pretrained(model, theirs.state_dict())
    assert report.adapted == ("backbone.conv1.weight summed over its 3 colour channels",)
    theirs.fc = torch.nn.Identity()
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(model.backbone(image), theirs(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_running_statistics_of_group_norms_are_dropped_and_reported():
    tensors, model = randomised(build()), build(seed=1, batch_norm="group")
    report = load_pretrained(model, tensors)
    assert len(report.dropped) == 3 * 20
    assert (
        "dropped backbone.bn1.running_mean, backbone.bn1.running_var, backbone.bn1.num_batches_tracked and 57 more"
        in (str(report))
    )
    assert torch.equal(model.backbone.bn1.weight, tensors["backbone.bn1.weight"])


@pytest.mark.parametrize(("name", "key"), [("monai_vit_small_16", "backbone.patch_embedding.position_embeddings")])
@pytest.mark.parametrize("dims", [2, 3])
def test_positions_of_another_grid_are_interpolated(name, key, dims):
    source, model = (build(name, image_size=size, spatial_dims=dims) for size in (64, 32))
    tensors = source.state_dict()
    place = torch.cartesian_prod(*[torch.arange(4.0)] * dims)
    ramp = (place[:, -1] + 10 * place[:, 0])[None, :, None].expand(-1, -1, 384)
    report = load_pretrained(model, tensors | {key: ramp})
    assert report.adapted == (f"{key} interpolated from (1, {4**dims}, 384) to (1, {2**dims}, 384)",)
    found = model.state_dict()[key][0, :, 0].view(2, -1, 2)
    # The halves of 0, 1, 2, 3 lie about 0.5 and 2.5, whatever a kernel does at the borders.
    assert 1 < found[0, 0, 1] - found[0, 0, 0] < 3
    assert 10 < found[1, 0, 0] - found[0, 0, 0] < 30
    assert found.mean() == pytest.approx(1.5 + 15, abs=1e-3)


def test_mismatching_file_is_rejected_and_changes_nothing():
    model = build()
    before = copy.deepcopy(model.state_dict())
    tensors = randomised(model)
    for name in ("backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias", "neck.bias"):
        del tensors[name]
    tensors["backbone.layer1.0.conv1.weight"] = torch.zeros(1, 2)
    tensors["backbone.other"] = torch.zeros(1)
    with pytest.raises(ConfigError) as fault:
        load_pretrained(model, tensors, "w.safetensors")
    assert str(fault.value) == (
        "recipe: model.init_from: w.safetensors does not match the network: 4 missing (backbone.conv1.weight, "
        "backbone.bn1.weight, backbone.bn1.bias and 1 more); 1 unknown (backbone.other); "
        "1 of another shape (backbone.layer1.0.conv1.weight (1, 2) for (64, 64, 3, 3))"
    )
    assert equal(model, before)


def test_half_precision_is_raised_and_batch_counts_may_be_missing():
    model = build()
    tensors = {n: t.half() for n, t in randomised(model).items() if not n.endswith("num_batches_tracked")}
    load_pretrained(model, tensors)
    assert model.neck.weight.dtype == torch.float32
    assert torch.equal(model.neck.weight, tensors["neck.weight"].float())


def test_layer_of_the_network_named_like_a_classifier_is_loaded():
    model = build("resnet_gn_tiny")
    model.backbone.head = torch.nn.Linear(2, 2)
    tensors = randomised(model)
    load_pretrained(model, tensors)
    assert torch.equal(model.backbone.head.weight, tensors["backbone.head.weight"])
