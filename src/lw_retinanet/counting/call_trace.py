"""Tracing one call of any network: the tree of the module calls with their MACs, for networks whose code we do not know."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lw_retinanet.errors import ConfigError, first_line

# The operations of convolutions and linear layers. The products inside attention are neither.
_LAYER_OPERATIONS = (torch.ops.aten.convolution, torch.ops.aten._convolution, torch.ops.aten.mm, torch.ops.aten.addmm)


@dataclass(kw_only=True, eq=False)
class Call:
    """One call of a module.

    Args:
        module: The module that was called.
        path: The parts of its name inside the traced module.
        outer: The call during which it was called; None for the traced module itself.
        macs: Its own MACs, without those of the calls inside it. Functional arithmetic belongs to the module whose code runs it.
        input_side: Length of the third axis of the first input, if that is a tensor with four axes. This is the side of a square map,
            whether its channels come first or last.
        output_side: The same for the output.
    """

    module: nn.Module
    path: tuple[str, ...]
    outer: "Call | None"
    macs: int = 0
    input_side: int | None = None
    output_side: int | None = None

    def chain(self) -> list["Call"]:
        """The calls from the traced module's down to this one."""
        return [*(self.outer.chain() if self.outer else []), self]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A module's call, and all calls during it.

    Args:
        calls: All calls in the order in which they began.
        output: What the module returned.
    """

    calls: list[Call]
    output: Any

    @property
    def macs(self) -> int:
        """MACs of all calls."""
        return sum(call.macs for call in self.calls)


def trace(module: nn.Module, *inputs: Any) -> Trace:
    """Call ``module(*inputs)`` and record all calls inside. Their MACs add up to those of torch's own flop counter.

    Args:
        module: A module, usually on the meta device, where nothing is computed. Hooks are removed afterwards.
        inputs: Its arguments.

    Raises:
        ConfigError: If the module cannot take such inputs.
    """
    recorder = _Recorder(module)
    try:
        with torch.no_grad(), recorder.counter:
            output = module(*inputs)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        reason = first_line(error)
        raise ConfigError(f"{type(module).__name__} cannot be counted at this size, use another size ({reason})") from error
    finally:
        for handle in recorder.handles:
            handle.remove()
    return Trace(calls=recorder.calls, output=output)


@dataclass(eq=False)
class _Recorder:
    module: nn.Module
    counter: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False))
    calls: list[Call] = field(default_factory=list)
    running: list[Call] = field(default_factory=list)
    booked: int = 0

    def __post_init__(self) -> None:
        self.paths = {each: tuple(name.split(".")) if name else () for name, each in self.module.named_modules()}
        self.handles = [each.register_forward_pre_hook(self._begin) for each in self.paths]
        self.handles += [each.register_forward_hook(self._end) for each in self.paths]

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._book()
        outer = self.running[-1] if self.running else None
        self.running.append(Call(module=module, path=self.paths[module], outer=outer, input_side=_side(inputs[0] if inputs else None)))
        self.calls.append(self.running[-1])

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._book()
        self.running.pop().output_side = _side(output)

    def _book(self) -> None:
        """Add the MACs since the last call of this method to the innermost running call."""
        flops = self.counter.flop_counts["Global"]
        total = sum(flops[operation] for operation in _LAYER_OPERATIONS if operation in flops) // 2
        if self.running:
            self.running[-1].macs += total - self.booked
        self.booked = total


def _side(value: Any) -> int | None:
    return value.shape[2] if isinstance(value, Tensor) and value.ndim == 4 else None
