import subprocess
import sys

import pytest
import torch
from torch import nn

from hsadml_dist.models import build_model, rank_dependent_layers


@pytest.mark.parametrize(("name", "features"), [("monai_resnet18", 512), ("monai_densenet121", 1024)])
def test_the_classifier_is_replaced_by_the_neck(name, features):
    model = build_model(name, embedding_dim=8, image_size=32)
    assert model.neck.in_features == features
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 8)
    assert [layer for layer in model.backbone.modules() if isinstance(layer, nn.Linear)] == []


def test_their_batch_norms_are_named_as_dependent_on_the_ranks():
    assert "backbone.bn1" in rank_dependent_layers(build_model("monai_resnet18", embedding_dim=8, image_size=32))


def test_monai_is_not_imported_before_it_is_needed():
    code = "import sys, hsadml_dist.train; print('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
