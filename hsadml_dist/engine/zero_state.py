"""Parameters, gradients and optimizer state under ZeRO: this rank's flat fragments, and full tensors gathered from them.

::

    parameter a (flattened)  parameter b          rank 0 holds the first half of the flat tensor, rank 1 the second
    [..........][..................]
    |--- rank 0 ---|--- rank 1 ---|               fragment of b: starts at 0 on rank 0, at 4 on rank 1

Weights, moments and averages are stored in flat tensors of the same layout, so one list of fragments serves all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.base import Groups
from hsadml_dist.engine.ema import EMA_COUNT_GROUP, EMA_GROUP, ExponentialMovingAverage


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatFragment:
    """This rank's part of one parameter.

    Attributes:
        name: The parameter.
        shape: The whole parameter's shape.
        start: Where in the flattened parameter the piece begins.
        count: Its elements; may be 0.
        flat: The flat tensor of weights that holds it.
        offset: Where in ``flat`` it begins.
    """

    name: str
    shape: torch.Size
    start: int
    count: int
    flat: torch.Tensor
    offset: int

    def of(self, alike: torch.Tensor) -> torch.Tensor:
        """Return the piece as a view (count,) of ``flat`` or of a tensor of its layout."""
        return alike.narrow(0, self.offset, self.count)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the piece (count,) of a whole tensor of the parameter's shape."""
        return whole.flatten().narrow(0, self.start, self.count)


def gather_full_tensors(
    shapes: Mapping[str, torch.Size],
    parts: Mapping[str, tuple[FlatFragment, torch.Tensor]],
    comm: Comm,
    *,
    keep: bool = True,
) -> dict[str, torch.Tensor]:
    """Put whole tensors together of all ranks' parts, bit for bit; to be called by all ranks.

    Args:
        shapes: The parameters to put together, in the same order on all ranks.
        parts: This rank's piece and its values (count,), fp32, by parameter.
        comm: The ranks.
        keep: Whether this rank wants the result; without it an empty mapping is returned.

    Returns:
        fp32 tensors on the CPU.
    """
    whole = {}
    for name, shape in shapes.items():
        # Whole numbers: sums of floating-point numbers would turn a negative zero into a positive one.
        bits = torch.zeros(shape.numel(), dtype=torch.int32, device=comm.device)
        if name in parts:
            piece, values = parts[name]
            bits.narrow(0, piece.start, piece.count).copy_(values.detach().contiguous().view(torch.int32))
        comm.all_reduce_sum(bits)
        if keep:
            whole[name] = bits.cpu().view(torch.float32).view(shape)
    return whole


def squared_norm(values: Iterable[torch.Tensor], comm: Comm) -> torch.Tensor:
    """Return the sum of squares over all ranks' pieces, a scalar; to be called by all ranks."""
    squares = [value.float().square().sum().to(comm.device) for value in values]
    return comm.all_reduce_sum(torch.stack(squares).sum() if squares else torch.zeros((), device=comm.device))


PARTITIONED_WEIGHTS_STAGE = 3
"""The stage from which on the weights are shared out too."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeedHandles:
    """DeepSpeed's side.

    Attributes:
        library: The package ``deepspeed``.
        optimizer: What it has put around PyTorch's.
        stage: 1 to 3.
    """

    library: Any
    optimizer: Any
    stage: int


class ZeroState:
    """This rank's pieces under ZeRO stages 1 to 3, and whole tensors put together of all ranks' pieces."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Comm,
        zero: DeepSpeedHandles,
        bare: Callable[[], nn.Module],
        ema_decay: float | None,
    ) -> None:
        """Find the pieces.

        Args:
            model: The network, its parameters as DeepSpeed has left them.
            optimizer: PyTorch's, which steps the flat tensors.
            comm: The ranks.
            zero: DeepSpeed's side.
            bare: Builds the same network anew, on the same device; its weights do not matter.
            ema_decay: Share that the weights' running average keeps at each step; None: no average.
        """
        self._model, self._optimizer, self._comm = model, optimizer, comm
        self._library, self._zero, self._stage = zero.library, zero.optimizer, zero.stage
        self._bare = bare
        names = {parameter: name for name, parameter in model.named_parameters()}
        find = _pieces_of_partitions if zero.stage < PARTITIONED_WEIGHTS_STAGE else _pieces_of_shards
        self._pieces = find(zero.optimizer, names, comm.topology.rank)
        self._shapes = {name: _shape(p) for name, p in model.named_parameters() if p.requires_grad}
        self._flats = list({id(piece.flat): piece.flat for piece in self._pieces}.values())
        self._average = None if ema_decay is None else ExponentialMovingAverage(self._flats, ema_decay)

    def norm(self) -> torch.Tensor:
        """Return the norm of the averaged gradient, a scalar; to be called by all ranks."""
        return squared_norm(map(self._gradient, self._pieces), self._comm).sqrt()

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the averaged gradients, whole, with their parameters' names; to be called by all ranks."""
        parts = {piece.name: (piece, self._gradient(piece)) for piece in self._pieces}
        for name, shape in self._shapes.items():
            yield from gather_full_tensors({name: shape}, parts, self._comm).items()

    def nonfinite_gradient(self) -> str | None:
        """Return the first parameter whose gradient is not finite in this rank's piece, or None."""
        return next((piece.name for piece in self._pieces if not self._gradient(piece).isfinite().all()), None)

    def nonfinite_weight(self) -> str | None:
        """Return the first weight or buffer that is not finite in what this rank holds, or None."""
        held = [*self._model.named_buffers(), *((piece.name, piece.of(piece.flat)) for piece in self._pieces)]
        return next((name for name, tensor in held if not tensor.isfinite().all()), None)

    def spoil(self) -> None:
        """Make the gradient's norm not finite, so that DeepSpeed passes over the step."""
        for piece in self._pieces[:1]:
            parameter = self._model.get_parameter(piece.name)
            if self._offloads():  # the norm is then added up from notes that were taken when the gradients were copied
                self._zero.norm_for_param_grads[self._zero.get_param_id(parameter)] = torch.tensor(torch.nan)
            else:
                self._gradient(piece).fill_(torch.nan)

    def stepped(self) -> None:
        """Note that a step was done."""
        if self._average is not None:
            self._average.update()

    def state(self) -> Groups:
        """Return groups of whole tensors on rank 0, groups of none on the others; to be called by all ranks."""
        first = self._comm.topology.is_rank_zero
        groups = {"model": self._weights(keep=first), "model_moments": self._moments(keep=first)}
        if self._average is None:
            return groups
        return groups | {
            EMA_GROUP: self._averages(keep=first),
            EMA_COUNT_GROUP: {"updates": torch.tensor(self._average.updates)},
        }

    @torch.no_grad()
    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave, of any stage and number of ranks; all ranks have all of it."""
        self._load_weights(groups["model"])
        for piece in self._pieces:
            piece.of(piece.flat).copy_(piece.cut(groups["model"][piece.name]))
        self._load_moments(groups["model_moments"])
        if self._average is not None:
            self._load_averages(self._average, groups)

    def evaluation_model(self) -> nn.Module:
        """Return the network with the weights to be judged, whole on each rank; to be called by all ranks."""
        if self._stage < PARTITIONED_WEIGHTS_STAGE and self._average is None:
            return self._model
        whole = self._bare()
        whole.load_state_dict(self._weights(keep=True) | self._averages(keep=True))
        return whole

    def _weights(self, *, keep: bool) -> dict[str, torch.Tensor]:
        """Return the network's tensors as its ``state_dict`` names them; to be called by all ranks.

        Args:
            keep: Whether this rank wants them; else an empty mapping is returned.
        """
        if self._stage < PARTITIONED_WEIGHTS_STAGE:
            return dict(self._model.state_dict()) if keep else {}
        trained = self._joined({piece.name: piece.flat for piece in self._pieces}, keep=keep)
        frozen = {n: self._gathered(p) for n, p in self._model.named_parameters() if n not in self._shapes}
        held = dict(self._model.named_buffers()) | frozen | trained
        return {name: held[name] for name in self._model.state_dict()} if keep else {}

    def _joined(self, flats: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
        """Put whole tensors together; ``flats`` has for each piece, by name, the flat tensor that its values are in."""
        parts = {piece.name: (piece, piece.of(flats[piece.name])) for piece in self._pieces}
        return gather_full_tensors(self._shapes, parts, self._comm, keep=keep)

    def _gradient(self, piece: FlatFragment) -> torch.Tensor:
        """Return the averaged gradient (count,) of this rank's piece, a view."""
        parameter: Any = self._model.get_parameter(piece.name)
        if self._stage < PARTITIONED_WEIGHTS_STAGE:
            return parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
        return self._library.utils.safe_get_local_grad(parameter).narrow(0, 0, piece.count)

    def _offloads(self) -> bool:
        return bool(self._zero.cpu_offload if self._stage < PARTITIONED_WEIGHTS_STAGE else self._zero.offload_optimizer)

    def _gathered(self, parameter: nn.Parameter) -> torch.Tensor:
        with self._library.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

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
        """Return the optimiser's state as :func:`hsadml_dist.optim.moments` names it."""
        found: dict[str, torch.Tensor] = {}
        states = self._optimizer.state
        kinds: dict[str, Any] = next(iter(states.values()), {})  # nothing before the first step
        for key in [key for key, value in kinds.items() if value is not None]:
            if kinds[key].ndim == 0:  # a count of steps, the same for all
                whole = {name: kinds[key].cpu() for name in self._shapes}
            else:
                whole = self._joined({piece.name: states[piece.flat][key] for piece in self._pieces}, keep=keep)
            found |= {f"{name}:{key}": value for name, value in whole.items()}
        return found if keep else {}

    def _load_moments(self, tensors: Mapping[str, torch.Tensor]) -> None:
        own = {piece.name: piece for piece in self._pieces}
        for full, value in tensors.items():
            name, _, key = full.rpartition(":")
            if name not in own:
                continue
            piece = own[name]
            state = self._optimizer.state[piece.flat]
            if value.shape != piece.shape:
                state[key] = value.to(piece.flat.device, copy=True)
                continue
            if key not in state:
                state[key] = torch.zeros_like(piece.flat)
            piece.of(state[key]).copy_(piece.cut(value))

    def _averages(self, *, keep: bool) -> dict[str, torch.Tensor]:
        if self._average is None or self._average.values is None:
            return {}
        return self._joined(self._by_piece(self._average.values), keep=keep)

    def _load_averages(
        self, average: ExponentialMovingAverage, groups: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        updates = int(groups[EMA_COUNT_GROUP]["updates"])
        values = [torch.zeros_like(flat) for flat in self._flats]
        flat_of = self._by_piece(values)
        for piece in self._pieces if updates else ():
            piece.of(flat_of[piece.name]).copy_(piece.cut(groups[EMA_GROUP][piece.name]))
        average.load(values if updates else None, updates)

    def _by_piece(self, alike: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return for each piece, by name, which of the tensors, laid out as the flat ones, has its values."""
        flat_of = {id(flat): value for flat, value in zip(self._flats, alike, strict=True)}
        return {piece.name: flat_of[id(piece.flat)] for piece in self._pieces}


def _pieces_of_partitions(zero: Any, names: Mapping[nn.Parameter, str], rank: int) -> list[FlatFragment]:
    """Return this rank's pieces under stages 1 and 2: one flat partition for each group of parameters."""
    found = []
    for flat, group in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        for parameter in group:
            here = parameter._hp_mapping
            if here is None:
                continue
            start, count = here.lp_fragment_address.start, here.lp_fragment_address.numel
            name, shape, offset = names[parameter], parameter.shape, here.hp_fragment_address.start
            found.append(FlatFragment(name=name, shape=shape, start=start, count=count, flat=flat, offset=offset))
    return found


def _pieces_of_shards(zero: Any, names: Mapping[nn.Parameter, str], rank: int) -> list[FlatFragment]:
    """Return this rank's pieces under stage 3: an equal part of every parameter, the last ones shorter or empty."""
    found = []
    for parameter in (parameter for group in zero.fp16_groups for parameter in group):
        place, offset, share = zero.grad_position[zero.get_param_id(parameter)]
        start = rank * share
        count = min(share, parameter.ds_numel - start)
        if count > 0:
            flat = zero.fp32_partitioned_groups_flat[place]
            name, shape = names[parameter], _shape(parameter)
            found.append(FlatFragment(name=name, shape=shape, start=start, count=count, flat=flat, offset=offset))
    return found


def _shape(parameter: Any) -> torch.Size:
    """Return a parameter's whole shape; under stage 3 its own is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
