"""A head of any class, of which some levels own layers: a subclass made on the fly, so that everything else is inherited.

The head's class is not known beforehand: it may be torchvision's or a user's subclass of it. What is known is that its ``forward`` takes a
list of feature maps, treats them one by one, and joins the answers along dimension 1.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn


class _Made(nn.Module):
    """Base of the two mixins: classes made from them have no importable name, so copying and pickling name the original class instead."""

    original: type[Any]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        mixin = LevelWise if isinstance(self, LevelWise) else LevelHead
        return _blank, (mixin, self.original), self.__getstate__()


MadeT = TypeVar("MadeT", bound=_Made)


_CLASSES: dict[tuple[type, type], Any] = {}


def _made_class(mixin: type, original: type) -> Any:
    if (mixin, original) not in _CLASSES:
        names = {"original": original, "__module__": original.__module__, "__doc__": original.__doc__}
        made = types.new_class(f"{mixin.__name__}{original.__name__}", (mixin, original), exec_body=lambda body: body.update(names))
        _CLASSES.setdefault((mixin, original), made)
    return _CLASSES[mixin, original]


def _blank(mixin: type[MadeT], original: type) -> MadeT:
    made: type[MadeT] = _made_class(mixin, original)
    return made.__new__(made)


class LevelHead(_Made):
    """The head as one level has it: own layers under the names of the head's, everything else the head's very own.

    It runs the original class's ``forward``. What it does not hold itself (settings, shared predictions, what a subclass added) is looked
    up in the head, so nothing is there twice, in the state dict neither.
    """

    whole: tuple[nn.Module]  # in a tuple, so that the head is not registered as a part of its part

    @classmethod
    def of(cls, head: nn.Module, original: type, layers: Mapping[str, nn.Module]) -> Self:
        """A part of ``head`` with these layers in place of its own."""
        level_head = _blank(cls, original)
        nn.Module.__init__(level_head)
        for name, layer in layers.items():
            setattr(level_head, name, layer)
        level_head.whole = (head,)
        return level_head.train(head.training)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        whole = self.__dict__.get("whole")
        if whole is None or name.startswith("__"):  # half-made while it is copied or unpickled
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(whole[0], name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # Not the original's: torchvision's renames the keys of its old towers, and would take a bare convolution of ours for one.
        nn.Module._load_from_state_dict(self, *args, **kwargs)


class LevelWise(_Made):
    """The whole head: levels named in ``own`` run their own :class:`LevelHead`, all others the original."""

    own: nn.ModuleDict  # by the level's place in the list of maps, as a string

    def forward(self, x: Sequence[Tensor]) -> Any:
        answers = [self.own[str(i)]([maps]) if str(i) in self.own else super(LevelWise, self).forward([maps]) for i, maps in enumerate(x)]
        return join(answers)


def join(answers: Sequence[Any]) -> Any:
    """Tensors, or tuples of tensors, of several levels along dimension 1."""
    if isinstance(answers[0], Tensor):
        return torch.cat(list(answers), dim=1)
    return tuple(torch.cat(tensors, dim=1) for tensors in zip(*answers, strict=True))


def give_own_layers(head: nn.Module, level: int, layers: Mapping[str, nn.Module]) -> LevelWise:
    """Let one level of a head own layers, in place.

    Args:
        head: of a class as above; becomes an instance of a subclass of its class, and keeps its parameters, buffers and their names.
        level: place in the list of maps, 0 is the first.
        layers: by the names under which the head's ``forward`` finds them.

    Returns:
        The same object.
    """
    if not isinstance(head, LevelWise):
        head.__class__ = _made_class(LevelWise, type(head))
        assert isinstance(head, LevelWise)
        head.own = nn.ModuleDict()
    head.own[str(level)] = LevelHead.of(head, head.original, layers)
    return head
