"""A network whose forward and backward passes torch.compile has made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hsadml_dist.errors import ConfigError, Fault


class CompiledNetwork(nn.Module):
    """Calls a network through its compiled forward pass.

    The network itself stays as it is: the names of its weights, its hooks, which run around the compiled part, and the
    way it answers when it is called directly, uncompiled.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        """Wrap the network; it is compiled at its first call with a shape, which takes tens of seconds.

        Args:
            network: On its device.
            device: The device.

        Raises:
            ConfigError: This machine cannot compile.
        """
        super().__init__()
        _check_compiler(device)
        self.network = network
        self._forward = _compiled(network.forward)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the network does."""
        network: Any = self.network
        network.forward = self._forward  # under the hooks of __call__, which no compiler need understand
        try:
            # One graph, not one a bucket: cut graphs cannot recompute activations.
            with torch._dynamo.config.patch(optimize_ddp=False):
                return network(image)
        finally:
            del network.forward


def disable_compilation() -> contextlib.AbstractContextManager[Any]:
    """Within this, compiled networks run as if they were not: for passes that are not worth a compilation."""
    return torch.compiler.set_stance("force_eager")


def _compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    # Draws as without compilation, and nothing chosen by the clock: else two starts of one run would differ.
    wanted = {"fallback_random": True, "deterministic": True}
    known = torch._inductor.list_options()
    options: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    # A graph for each shape: one for several would depend on the order in which shapes came, and a resumed run meets
    # them in another order.
    return torch.compile(function, dynamic=False, options=options)


def _check_compiler(device: torch.device) -> None:
    """Compile a trifle, since what is missing (compiler, headers, Triton) shows only then."""
    try:
        _compiled(_trifle)(torch.ones(8, device=device))
    except RuntimeError as fault:
        reason = next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        problem = f"true, but this machine cannot compile ({reason}); set it to false or install a C++ compiler"
        raise ConfigError([Fault(where="recipe", key="engine.compile", problem=problem)]) from fault


def _trifle(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
