import pytest
import torch

from hsadml_dist.errors import ConfigError
from hsadml_dist.models.activations import activation_bytes, count_trainable, meta_backbone
from hsadml_dist.models.network import InputSpec, build_model
from hsadml_dist.models.registry import BACKBONE_FACTS, REFERENCE_SIZE, model_problems, rank_memory_by_engine, size_rule

REFERENCE, LARGE = InputSpec(image_size=REFERENCE_SIZE), InputSpec(image_size=448)
ONE_OF_EACH_KIND = (
    "resnet_gn_tiny",
    "vit_small_patches",
    "monai_densenet121",
    "monai_efficientnet_b0",
    "monai_resnet18",
    "monai_seresnet50",
    "monai_vit_small_16",
    "monai_vit_huge_14",
    "monai_swinunetr_encoder",
)
EACH = [name if name in ONE_OF_EACH_KIND else pytest.param(name, marks=pytest.mark.soak) for name in BACKBONE_FACTS]


@pytest.mark.parametrize("name", EACH)
def test_facts_match_weights_and_features_of_the_network(name):
    net, features = meta_backbone(name, REFERENCE)
    volumes, _ = meta_backbone(name, InputSpec(image_size=REFERENCE_SIZE, spatial_dims=3))
    found = (count_trainable(net), count_trainable(volumes), features)
    assert found == (BACKBONE_FACTS[name].weights, BACKBONE_FACTS[name].weights_3d, BACKBONE_FACTS[name].features)


@pytest.mark.parametrize("name", EACH)
def test_facts_match_norm_of_the_network(name):
    kinds = {type(layer).__name__ for layer in meta_backbone(name, REFERENCE)[0].modules()}
    assert {kind.removesuffix("2d") for kind in kinds if "Norm" in kind} == {BACKBONE_FACTS[name].norm}


@pytest.mark.parametrize("name", EACH)
def test_facts_match_activations_saved_by_autograd(name):
    assert activation_bytes(meta_backbone(name, REFERENCE)[0], REFERENCE) == BACKBONE_FACTS[name].activations


@pytest.mark.parametrize("name", ["vit_small_patches", "monai_resnet18", "monai_vit_small_16"])
def test_activations_grow_with_the_image_area(name):
    counted = activation_bytes(meta_backbone(name, LARGE)[0], LARGE)
    assert BACKBONE_FACTS[name].activations_at(448) == pytest.approx(counted, rel=0.05)


def test_activation_bytes_match_a_real_forward_pass():
    net, _ = meta_backbone("monai_vit_small_16", InputSpec(image_size=64))
    real = build_model("monai_vit_small_16", embedding_dim=2, image_size=64).backbone
    own = {tensor.data_ptr() for tensor in real.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    image = torch.zeros(1, 1, 64, 64)
    own.add(image.data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real(image)
    assert activation_bytes(net, InputSpec(image_size=64)) == sum(
        tensor.untyped_storage().nbytes() for tensor in kept.values()
    )


@pytest.mark.parametrize("name", [name for name in EACH if name not in ("resnet_gn_tiny", "vit_small_patches")])
def test_too_small_images_are_rejected_and_would_fail(name):
    facts = BACKBONE_FACTS[name]
    least = max(facts.least, facts.multiple)
    assert list(model_problems(name, least)) == []
    ((key, text),) = model_problems(name, least - 1)
    assert key == "data.image_size"
    assert text.startswith(f"{least - 1} does not fit {name}: must be {size_rule(facts)}")
    assert "\n" not in text
    with pytest.raises(ConfigError, match=r"data\.image_size: \d+ does not fit"):
        build_model(name, embedding_dim=2, image_size=least - 1)


@pytest.mark.parametrize("name", ["monai_densenet121", "monai_efficientnet_b0", "monai_seresnet50", "monai_resnet18"])
def test_least_size_leaves_more_than_one_value_per_channel(name):
    size = BACKBONE_FACTS[name].least // 2
    net, _ = meta_backbone(name, InputSpec(image_size=2 * size))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.empty(1, 1, size, size, device="meta"))


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("monai_vit_large_16", 230, "must be a multiple of 16, such as 224 or 240"),
        ("monai_vit_huge_14", 7, "must be a multiple of 14, such as 14"),
        ("monai_resnet18", 31, "must be at least 32"),
    ],
)
def test_model_problems_suggest_valid_image_sizes(name, size, text):
    ((_, problem),) = model_problems(name, size)
    assert problem == f"{size} does not fit {name}: {text}"


def test_model_problems_reject_unknown_names_except_timm():
    ((key, text),) = model_problems("monai_restnet18", 224)
    assert key == "model.name"
    assert text.startswith("'monai_restnet18' is unknown (did you mean 'monai_resnet18'?)")
    assert list(model_problems("timm/anything", 1)) == []
    assert [key for key, _ in model_problems("timm/", 224)] == ["model.name"]


def test_rank_memory_decreases_with_each_zero_stage():
    held = rank_memory_by_engine(1000, 4)
    parts = {name: (memory.weights, memory.gradients, memory.moments) for name, memory in held.items()}
    assert parts == {
        "ddp": (4000, 4000, 8000),
        "zero-1": (5000, 4000, 2000),
        "zero-2": (5000, 1000, 2000),
        "zero-3": (2000, 1000, 2000),
    }
    assert held["ddp"].total == 16000
    alone = rank_memory_by_engine(1000, 1)
    assert {alone[name].total - alone["ddp"].total for name in ("zero-1", "zero-2", "zero-3")} == {4000}
