import pytest
import torch
from torch import nn

from hsadml_dist.models.activations import meta_backbone
from hsadml_dist.models.layer_depth import block_names, layer_depths
from hsadml_dist.models.network import EmbeddingNet, InputSpec
from hsadml_dist.models.registry import BACKBONE_FACTS

FAMILIES = {
    "resnet_gn_small": 4,
    "vit_small_patches": 6,
    "monai_densenet121": 6 + 12 + 24 + 16 + 3,
    "monai_efficientnet_b0": 16,
    "monai_resnet50": 3 + 4 + 6 + 3,
    "monai_seresnet50": 3 + 4 + 6 + 3,
    "monai_vit_small_16": 12,
    "monai_swinunetr_encoder": 2 + 2 + 2 + 2,
}
FIRST = ("conv0.weight", "conv1.weight", "_conv_stem.weight", "stem.0.weight", "patches.weight", "proj.weight")


def whole(name):
    size = max(64, BACKBONE_FACTS[name].least)
    net, features = meta_backbone(name, InputSpec(image_size=size))
    return EmbeddingNet(net, features, 8, 0.0).to("meta"), torch.empty(2, 1, size, size, device="meta")


def used(model, image):
    """Return the modules that hold parameters in the order in which a forward pass first calls them."""
    order = []
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda _, __, name=name: order.append(name))
    model(image)
    return list(dict.fromkeys(order))


@pytest.mark.parametrize("name", FAMILIES)
def test_depth_increases_from_stem_to_neck(name):
    model, image = whole(name)
    depths = layer_depths(model)
    assert list(depths) == [name for name, _ in model.named_parameters()]
    along = [depths[key] for module in used(model, image) for key in depths if key.rpartition(".")[0] == module]
    assert along == sorted(along)
    assert along[0] == 0
    assert depths["neck.weight"] == depths["neck.bias"] == max(depths.values()) == FAMILIES[name] + 1
    assert set(depths.values()) == set(range(FAMILIES[name] + 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_block_has_its_own_depth(name):
    model, _ = whole(name)
    depths = layer_depths(model)
    for place, block in enumerate(block_names(model), start=1):
        assert {depth for key, depth in depths.items() if key.startswith(f"{block}.")} == {place}


def test_positions_and_patches_have_depth_0():
    depths = layer_depths(whole("vit_small_patches")[0])
    assert [key for key, depth in depths.items() if depth == 0] == [
        "backbone.positions",
        "backbone.patches.weight",
        "backbone.patches.bias",
    ]
    depths = layer_depths(whole("monai_vit_small_16")[0])
    assert depths["backbone.patch_embedding.position_embeddings"] == 0
    assert depths["backbone.norm.weight"] == 13


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.LayerNorm(2)


class Stage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        for number in range(blocks):
            self.add_module(f"b{number + 1}", Branch())


def test_blocks_in_custom_stages_and_single_block_stages():
    net = nn.Module()
    net.stem, net.s1, net.s2, net.head = nn.Linear(2, 2), Stage(1), Stage(3), nn.Linear(2, 2)
    assert block_names(net) == ["s1.b1", "s2.b1", "s2.b2", "s2.b3"]
    depths = layer_depths(net)
    assert (depths["stem.weight"], depths["s2.b3.a.weight"], depths["head.weight"]) == (0, 4, 5)


def test_container_inside_a_block_is_not_a_chain():
    def block():
        made = Branch()
        made.side = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
        return made

    net = nn.Sequential(nn.Sequential(block(), block()), nn.Sequential(block()))
    assert block_names(net) == ["0.0", "0.1", "1.0"]


def test_blocks_alone_in_their_stages_are_found():
    net = nn.Module()
    net.stem, net.one, net.two = nn.Linear(2, 2), nn.Sequential(Branch()), nn.Sequential(Branch())
    assert block_names(net) == ["one.0", "two.0"]


def test_network_without_blocks_uses_longest_container():
    features = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)), nn.ReLU())
    assert block_names(features) == ["0", "1", "2"]
    net = nn.Sequential(features, nn.Linear(2, 2))
    assert block_names(net) == ["0.0", "0.1", "0.2"]
    assert layer_depths(net)["1.weight"] == 4
    assert layer_depths(nn.Linear(2, 2)) == {"weight": 0, "bias": 0}
