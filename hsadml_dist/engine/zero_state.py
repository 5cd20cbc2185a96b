"""State of a network under ZeRO: the flat fragments of this rank, and full tensors gathered from all ranks.

::

    parameter a (flattened)  parameter b          rank 0 holds the first half of the flat tensor, rank 1 the second
    [..........][..................]
    |--- rank 0 ---|--- rank 1 ---|               fragment of b: starts at 0 on rank 0, at 4 on rank 1

Weights, moments and averages are stored in flat tensors of the same layout, so one list of fragments serves all three.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.base import Groups, ModelState
from hsadml_dist.engine.ema import EMA_COUNT_GROUP, EMA_GROUP, ExponentialMovingAverage


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatFragment:
    """The local fragment of one parameter.

    Attributes:
        name: Name of the parameter.
        shape: Shape of the full parameter.
        start: Offset of the fragment in the flattened parameter.
        count: Number of elements; may be 0.
        flat: The flat tensor of weights that contains the fragment.
        offset: Offset of the fragment in ``flat``.
    """

    name: str
    shape: torch.Size
    start: int
    count: int
    flat: torch.Tensor
    offset: int

    def view_of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the fragment as a view (count,) of a flat tensor with the layout of ``self.flat``."""
        return flat.narrow(0, self.offset, self.count)

    def slice_of(self, full: torch.Tensor) -> torch.Tensor:
        """Return the fragment (count,) of a full tensor with the shape of the parameter."""
        return full.flatten().narrow(0, self.start, self.count)


def gather_full_tensors(
    shapes: Mapping[str, torch.Size],
    parts: Mapping[str, tuple[FlatFragment, torch.Tensor]],
    comm: Comm,
    *,
    keep: bool = True,
) -> dict[str, torch.Tensor]:
    """Assemble full tensors from the fragments of all ranks, bit for bit. Collective: every rank must call it.

    Args:
        shapes: Shapes of the parameters to assemble, in the same order on all ranks.
        parts: Local fragment and its values (count,), fp32, by parameter.
        comm: The ranks.
        keep: True if this rank needs the result; otherwise it gets an empty mapping.

    Returns:
        fp32 tensors on the CPU.
    """
    full = {}
    for name, shape in shapes.items():
        # Added as integers, because a floating-point sum turns a negative zero into a positive one.
        bits = torch.zeros(shape.numel(), dtype=torch.int32, device=comm.device)
        if name in parts:
            fragment, values = parts[name]
            bits.narrow(0, fragment.start, fragment.count).copy_(values.detach().contiguous().view(torch.int32))
        comm.all_reduce_sum(bits)
        if keep:
            full[name] = bits.cpu().view(torch.float32).view(shape)
    return full


def squared_norm(values: Iterable[torch.Tensor], comm: Comm) -> torch.Tensor:
    """Return the sum of squares over the fragments of all ranks, a scalar. Collective: every rank must call it."""
    squares = [value.float().square().sum().to(comm.device) for value in values]
    return comm.all_reduce_sum(torch.stack(squares).sum() if squares else torch.zeros((), device=comm.device))


PARTITIONED_WEIGHTS_STAGE = 3
"""ZeRO stage from which the weights are partitioned too."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeedHandles:
    """Access to DeepSpeed.

    Attributes:
        library: The package ``deepspeed``.
        optimizer: Its wrapper of the PyTorch optimizer.
        stage: ZeRO stage, 1 to 3.
    """

    library: Any
    optimizer: Any
    stage: int


class ZeroState(ModelState):
    """The local fragments under ZeRO stages 1 to 3, and full tensors gathered from all ranks; a ``ModelState``.

    Reads the tensors of DeepSpeed in place; what it returns is full tensors by parameter name, independent of stage and
    number of ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Comm,
        zero: DeepSpeedHandles,
        build_copy: Callable[[], nn.Module],
        ema_decay: float | None,
    ) -> None:
        """Find the fragments.

        Args:
            model: The network, with its parameters as DeepSpeed has left them.
            optimizer: The PyTorch optimizer, which steps the flat tensors.
            comm: The ranks.
            zero: Access to DeepSpeed.
            build_copy: Builds the same network again, on the same device; its weights do not matter.
            ema_decay: Decay of the running average of the weights; None means no average.
        """
        self._model, self._optimizer, self._comm = model, optimizer, comm
        self._library, self._zero, self._stage = zero.library, zero.optimizer, zero.stage
        self._build_copy = build_copy
        names = {parameter: name for name, parameter in model.named_parameters()}
        find = _partition_fragments if zero.stage < PARTITIONED_WEIGHTS_STAGE else _shard_fragments
        self._fragments = find(zero.optimizer, names, comm.topology.rank)
        self._shapes = {name: _shape(p) for name, p in model.named_parameters() if p.requires_grad}
        self._flats = list({id(fragment.flat): fragment.flat for fragment in self._fragments}.values())
        self._ema = None if ema_decay is None else ExponentialMovingAverage(self._flats, ema_decay)

    def norm(self) -> torch.Tensor:
        return squared_norm(map(self._gradient, self._fragments), self._comm).sqrt()

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        parts = {fragment.name: (fragment, self._gradient(fragment)) for fragment in self._fragments}
        for name, shape in self._shapes.items():
            yield from gather_full_tensors({name: shape}, parts, self._comm).items()

    def nonfinite_gradient(self) -> str | None:
        return next((part.name for part in self._fragments if not self._gradient(part).isfinite().all()), None)

    def nonfinite_weight(self) -> str | None:
        weights = ((fragment.name, fragment.view_of(fragment.flat)) for fragment in self._fragments)
        held = itertools.chain(self._model.named_buffers(), weights)
        return next((name for name, tensor in held if not tensor.isfinite().all()), None)

    def invalidate_gradient(self) -> None:
        """Make the norm of the gradient NaN, so that DeepSpeed skips the step."""
        for fragment in self._fragments[:1]:
            parameter = self._model.get_parameter(fragment.name)
            offloads = (
                self._zero.cpu_offload if self._stage < PARTITIONED_WEIGHTS_STAGE else self._zero.offload_optimizer
            )
            if offloads:  # the norm is then computed from values recorded when the gradients were copied
                self._zero.norm_for_param_grads[self._zero.get_param_id(parameter)] = torch.tensor(torch.nan)
            else:
                self._gradient(fragment).fill_(torch.nan)

    def after_step(self) -> None:
        if self._ema is not None:
            self._ema.update()

    def state(self) -> Groups:
        """Return groups of full tensors on rank 0, empty groups on the others."""
        first = self._comm.topology.is_rank_zero
        groups = {"model": self._weights(keep=first), "model_moments": self._moments(keep=first)}
        if self._ema is None:
            return groups
        return groups | {
            EMA_GROUP: self._averages(keep=first),
            EMA_COUNT_GROUP: {"updates": torch.tensor(self._ema.updates)},
        }

    @torch.no_grad()
    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self._load_weights(groups["model"])
        for fragment in self._fragments:
            fragment.view_of(fragment.flat).copy_(fragment.slice_of(groups["model"][fragment.name]))
        self._load_moments(groups["model_moments"])
        if self._ema is not None:
            self._load_averages(self._ema, groups[EMA_GROUP], int(groups[EMA_COUNT_GROUP]["updates"]))

    def evaluation_model(self) -> nn.Module:
        if self._stage < PARTITIONED_WEIGHTS_STAGE and self._ema is None:
            return self._model
        network = self._build_copy()
        network.load_state_dict(self._weights(keep=True) | self._averages(keep=True))
        return network

    def _weights(self, *, keep: bool) -> dict[str, torch.Tensor]:
        """Return the full tensors of the state dict, or an empty mapping where ``keep`` is False."""
        if self._stage < PARTITIONED_WEIGHTS_STAGE:
            return dict(self._model.state_dict()) if keep else {}
        trained = self._gather({fragment.name: fragment.flat for fragment in self._fragments}, keep=keep)
        frozen: dict[str, Any] = {n: p for n, p in self._model.named_parameters() if n not in self._shapes}
        for name, parameter in frozen.items():
            with self._library.zero.GatheredParameters([parameter]):
                frozen[name] = parameter.detach().clone()
        held = dict(self._model.named_buffers()) | frozen | trained
        return {name: held[name] for name in self._model.state_dict()} if keep else {}

    def _gather(self, flats: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
        """Gather full tensors; ``flats`` maps the name of each fragment to the flat tensor with its values."""
        parts = {fragment.name: (fragment, fragment.view_of(flats[fragment.name])) for fragment in self._fragments}
        return gather_full_tensors(self._shapes, parts, self._comm, keep=keep)

    def _gradient(self, fragment: FlatFragment) -> torch.Tensor:
        """Return the averaged gradient (count,) of a local fragment, a view."""
        parameter: Any = self._model.get_parameter(fragment.name)
        if self._stage < PARTITIONED_WEIGHTS_STAGE:
            return parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
        return self._library.utils.safe_get_local_grad(parameter).narrow(0, 0, fragment.count)

    def _load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self._stage < PARTITIONED_WEIGHTS_STAGE:
            self._model.load_state_dict(dict(tensors))
            return
        for name, parameter in self._model.named_parameters():
            with self._library.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(tensors[name])
        for name, buffer in self._model.named_buffers():
            buffer.copy_(tensors.get(name, buffer))

    def _moments(self, *, keep: bool) -> dict[str, torch.Tensor]:
        """Return the optimizer state with the names of :func:`hsadml_dist.optim.moments`."""
        found: dict[str, torch.Tensor] = {}
        states = self._optimizer.state
        kinds: dict[str, Any] = next(iter(states.values()), {})  # empty before the first step
        for key in [key for key, value in kinds.items() if value is not None]:
            if kinds[key].ndim == 0:  # the step count, equal for all parameters
                full = {name: kinds[key].cpu() for name in self._shapes}
            else:
                full = self._gather({part.name: states[part.flat][key] for part in self._fragments}, keep=keep)
            found |= {f"{name}:{key}": value for name, value in full.items()}
        return found if keep else {}

    def _load_moments(self, tensors: Mapping[str, torch.Tensor]) -> None:
        own = {fragment.name: fragment for fragment in self._fragments}
        for entry, value in tensors.items():
            name, _, key = entry.rpartition(":")
            if name not in own:
                continue
            fragment = own[name]
            state = self._optimizer.state[fragment.flat]
            if value.shape != fragment.shape:
                state[key] = value.to(fragment.flat.device, copy=True)
                continue
            if key not in state:
                state[key] = torch.zeros_like(fragment.flat)
            fragment.view_of(state[key]).copy_(fragment.slice_of(value))

    def _averages(self, *, keep: bool) -> dict[str, torch.Tensor]:
        if self._ema is None or self._ema.values is None:
            return {}
        return self._gather(self._flat_by_name(self._ema.values), keep=keep)

    def _load_averages(
        self, average: ExponentialMovingAverage, tensors: Mapping[str, torch.Tensor], updates: int
    ) -> None:
        values = [torch.zeros_like(flat) for flat in self._flats]
        flat_of = self._flat_by_name(values)
        for fragment in self._fragments if updates else ():
            fragment.view_of(flat_of[fragment.name]).copy_(fragment.slice_of(tensors[fragment.name]))
        average.load(values if updates else None, updates)

    def _flat_by_name(self, flats: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the flat tensor that contains each fragment; ``flats`` has the order and layout of ``self._flats``."""
        flat_of = {id(flat): value for flat, value in zip(self._flats, flats, strict=True)}
        return {fragment.name: flat_of[id(fragment.flat)] for fragment in self._fragments}


def _partition_fragments(zero: Any, names: Mapping[nn.Parameter, str], rank: int) -> list[FlatFragment]:
    """Return the local fragments under stages 1 and 2: one flat partition per parameter group."""
    found = []
    for flat, group in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            start, count = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            name, shape, offset = names[parameter], parameter.shape, mapping.hp_fragment_address.start
            found.append(FlatFragment(name=name, shape=shape, start=start, count=count, flat=flat, offset=offset))
    return found


def _shard_fragments(zero: Any, names: Mapping[nn.Parameter, str], rank: int) -> list[FlatFragment]:
    """Return the local fragments under stage 3: equal shards of each parameter, the last ones shorter or empty."""
    found = []
    for parameter in itertools.chain.from_iterable(zero.fp16_groups):
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        start = rank * size
        count = min(size, parameter.ds_numel - start)
        if count > 0:
            flat = zero.fp32_partitioned_groups_flat[group]
            name, shape = names[parameter], _shape(parameter)
            found.append(FlatFragment(name=name, shape=shape, start=start, count=count, flat=flat, offset=offset))
    return found


def _shape(parameter: Any) -> torch.Size:
    """Return the full shape of a parameter; under stage 3 its own shape is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
