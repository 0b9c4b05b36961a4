"""Give levels of a torchvision head layers of their own, by subclassing the head's class at run time.

The class may be torchvision's or a user's subclass of it. All that is assumed is that its ``forward`` takes a list of feature maps, treats
them one by one, and joins the answers along dimension 1. Everything else is inherited.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn


class _Made(nn.Module):
    """Base of the two mixins. Classes made from them cannot be imported by name, so copies and pickles name the original class instead."""

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
    """The head of one level: it has layers of its own under the names that the whole head uses.

    It runs the ``forward`` of the original class. Attributes that it does not have itself (settings, shared predictions, what a subclass
    added) are looked up in the whole head, so that nothing is stored twice, in the state dict either.
    """

    whole: tuple[nn.Module]  # in a tuple, so that the whole head is not registered as a child of its own child

    @classmethod
    def of(cls, head: nn.Module, original: type, layers: Mapping[str, nn.Module]) -> Self:
        """Make the head of one level, with these layers in place of those of ``head``."""
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
        if whole is None or name.startswith("__"):  # while it is copied or unpickled, before its attributes are set
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(whole[0], name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # Not the method of the original class: torchvision's renames keys of old checkpoints, and would rename ours by mistake.
        nn.Module._load_from_state_dict(self, *args, **kwargs)


class LevelWise(_Made):
    """The whole head. Levels in ``own`` run their own :class:`LevelHead`, all others the original class."""

    own: nn.ModuleDict  # keys: the level's index in the list of maps, as a string

    def forward(self, x: Sequence[Tensor]) -> Any:
        """Answers for all maps, in the form of the original class."""
        answers = [self.own[str(i)]([maps]) if str(i) in self.own else super(LevelWise, self).forward([maps]) for i, maps in enumerate(x)]
        return join(answers)


def join(answers: Sequence[Any]) -> Any:
    """Join the answers of several levels, tensors or tuples of tensors, along dimension 1."""
    if isinstance(answers[0], Tensor):
        return torch.cat(list(answers), dim=1)
    return tuple(torch.cat(tensors, dim=1) for tensors in zip(*answers, strict=True))


def give_own_layers(head: nn.Module, level: int, layers: Mapping[str, nn.Module]) -> LevelWise:
    """Give one level of a head layers of its own, in place.

    Args:
        head: A head as described above. It becomes an instance of a subclass of its class; its parameters and buffers keep their names.
        level: Index in the list of maps.
        layers: The layers by the names that the head's ``forward`` uses.

    Returns:
        The same object.
    """
    if not isinstance(head, LevelWise):
        head.__class__ = _made_class(LevelWise, type(head))
        assert isinstance(head, LevelWise)
        head.own = nn.ModuleDict()
    head.own[str(level)] = LevelHead.of(head, head.original, layers)
    return head
