import pytest
import torch
import torch._inductor.config
from torch import nn

from hsadml_dist.engine import ddp
from hsadml_dist.engine.ddp import CompiledNetwork, disable_compilation
from hsadml_dist.errors import ConfigError

OPTIONS = "engine/ddp_ranks.py"


def assert_near(one, other, within):
    for group, tensors in one["state"].items():
        assert tensors.keys() == other["state"][group].keys()
        for name, value in tensors.items():
            torch.testing.assert_close(value, other["state"][group][name], rtol=0, atol=within)
    assert one["gradients"].keys() == other["gradients"].keys()
    for (loss, norm), (loss_too, norm_too) in zip(one["told"], other["told"], strict=True):
        assert loss == pytest.approx(loss_too, abs=within)
        assert norm == pytest.approx(norm_too, abs=within)


def test_compiled_network_combines_with_all_options(ranks):
    for answer in ranks(OPTIONS, 2, "traced"):
        way = ("thirds", "frozen", "drawing", "static", "recomputing")
        assert_near(answer["compiled", *way], answer[way], 1e-12)
        assert answer["graphs",]["unique_graphs"] == 3, "the trial at the start, and one a size of a part"
        assert not any("_orig_mod" in name for name in answer["compiled", *way]["state"]["model"])


class Counting(nn.Linear):
    """Counts how often Python runs it."""

    calls = 0

    def forward(self, x):
        if not torch.compiler.is_compiling():
            Counting.calls += 1
        return super().forward(x)


@pytest.fixture
def net(monkeypatch):
    """A network that is traced, but whose kernels are those of PyTorch."""
    monkeypatch.setattr(ddp, "compile_function", lambda f: torch.compile(f, dynamic=False, backend="aot_eager"))
    monkeypatch.setattr(Counting, "calls", 0)
    return Counting(3, 2)


def test_only_calls_through_the_wrapper_are_compiled(net):
    calls, image = [], torch.ones(4, 3)
    net.register_forward_hook(lambda *parts: calls.append("after"))
    net.register_forward_pre_hook(lambda *parts: calls.append("before"))
    wrapped = CompiledNetwork(net, torch.device("cpu"))
    answer = wrapped(image)
    assert Counting.calls == 0
    assert calls == ["before", "after"]
    with disable_compilation():
        assert torch.equal(wrapped(image), answer)
    assert Counting.calls == 1
    assert torch.equal(net(image), answer)
    assert Counting.calls == 2
    assert "forward" not in net.__dict__


def test_error_in_compiled_forward_leaves_network_unchanged(net):
    with pytest.raises(RuntimeError):
        CompiledNetwork(net, torch.device("cpu"))(torch.ones(4, 5))
    assert "forward" not in net.__dict__


def test_missing_compiler_is_a_config_error(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(
        ConfigError, match=r"^recipe: engine\.compile: true, but this machine cannot compile \(.*\)"
    ) as told:
        CompiledNetwork(nn.Linear(2, 2), torch.device("cpu"))
    assert "\n" not in str(told.value)


@pytest.mark.soak
@pytest.mark.parametrize("world", [1, 2])
def test_real_kernels_match_eager_and_resume_is_bit_identical(nursery, ranks, world, monkeypatch):
    monkeypatch.setattr("tests.conftest.SECONDS", 1200)
    for answer in ranks(OPTIONS, world, "compiled"):
        for way, plain in answer.items():
            if "compiled" not in way and "resumed" not in way:
                assert_near(answer["compiled", *way], plain, 2e-5 if "fp32" in way else 1e-12)
        whole, again, _ = answer["resumed",]["states"]
        for group, tensors in whole.items():
            assert all(torch.equal(value, again[group][name]) for name, value in tensors.items()), group
