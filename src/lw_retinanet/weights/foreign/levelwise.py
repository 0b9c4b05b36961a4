"""Give levels of a torchvision head layers of their own, by subclassing the head's class at run time.

The class may be torchvision's or a user's subclass of it. All that is assumed is that its ``forward`` takes a list of feature maps, treats
them one by one, and joins the answers along dimension 1, or lists them as R-CNN's proposal network does. Everything else is inherited.
"""

import inspect
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn

from lw_retinanet.errors import InputError

MARKER = "lightened"  # a buffer: a model with a full head reports it as unexpected


class _Made(nn.Module):
    """Base of the two mixins. Classes made from them cannot be imported by name, so copies and pickles name the original class instead."""

    original: type[Any]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        mixin = LevelWise if isinstance(self, LevelWise) else LevelHead
        return _blank, (mixin, self.original), self.__getstate__()


MadeT = TypeVar("MadeT", bound=_Made)


_CLASSES: dict[tuple[type, type], Any] = {}


def _made_class(mixin: type, original: type[Any]) -> Any:
    if (mixin, original) not in _CLASSES:
        names = {
            "original": original,
            "__module__": original.__module__,
            "__doc__": original.__doc__,
            "forward_of_class": _renamed(original.forward),
        }
        # TorchScript looks at the annotations of the class itself, and those of the mixins are none of its types.
        names["__annotations__"] = dict(getattr(original, "__annotations__", {}))
        base = _with_static_types(mixin, original)
        made = types.new_class(f"{mixin.__name__}{original.__name__}", (base, original), exec_body=lambda body: body.update(names))
        _CLASSES.setdefault((mixin, original), made)
    return _CLASSES[mixin, original]


def _renamed(forward: Any) -> Any:
    """The same function under the name ``forward_of_class``, by which TorchScript tells methods apart."""
    if not isinstance(forward, types.FunctionType):
        return forward
    copied = types.FunctionType(forward.__code__, forward.__globals__, "forward_of_class", forward.__defaults__, forward.__closure__)
    copied.__annotations__, copied.__kwdefaults__ = forward.__annotations__, forward.__kwdefaults__
    return copied


def _with_static_types(mixin: type, original: type[Any]) -> type:
    """The kind of ``LevelWise`` whose types TorchScript knows, if the original says what it returns."""
    if mixin is not LevelWise:
        return mixin
    try:
        source = inspect.getsource(original.forward)  # torchvision has the types of some heads in comments
    except (OSError, TypeError):
        return mixin
    found = re.search(r"-> (Tensor|[tT]uple\[Tensor, Tensor\]|[tT]uple\[[lL]ist\[Tensor\], [lL]ist\[Tensor\]\]):?\n", source)
    if found is None:
        return mixin
    return _TensorLevels if found[1] == "Tensor" else _ListLevels if "ist[" in found[1] else _PairLevels


def _blank(mixin: type[MadeT], original: type) -> MadeT:
    made: type[MadeT] = _made_class(mixin, original)
    return made.__new__(made)


class LevelHead(_Made):
    """The head of one level: it has layers of its own under the names that the whole head uses.

    It runs the ``forward`` of the original class. Attributes that it does not have itself (settings, shared predictions, what a subclass
    added) are looked up in the whole head, so that nothing is stored twice, in the state dict either.
    """

    whole: tuple[nn.Module]  # in a tuple, so that the whole head is not registered as a child of its own child
    __jit_ignored_attributes__ = ("whole",)

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
        if name == "__constants__" and whole is not None:  # settings of the whole head that TorchScript also needs here
            return [
                key for key, value in vars(whole[0]).items() if key not in self.__dict__ and isinstance(value, bool | int | float | str)
            ]
        if whole is None or name.startswith("__"):  # while it is copied or unpickled, before its attributes are set
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(whole[0], name)

    def __prepare_scriptable__(self) -> Self:
        """Called by ``torch.jit.script``.

        Raises:
            InputError: if the level shares a layer with the others, which TorchScript does not allow.
        """
        shared = [name for name in self.whole[0]._modules if name != "own" and name not in self._modules]
        if shared:
            raise InputError(f"TorchScript cannot share {shared[0]} between levels; script a model lightened to another preset, lw-v3")
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # Not the method of the original class: torchvision's renames keys of old checkpoints, and would rename ours by mistake.
        nn.Module._load_from_state_dict(self, *args, **kwargs)


class LevelWise(_Made):
    """The whole head. Levels in ``own`` run their own :class:`LevelHead`, all others the original class."""

    if TYPE_CHECKING:
        own: nn.ModuleDict  # keys: the level's index in the list of maps, as a string
        forward_of_class: Any

    def forward(self, x: Any) -> Any:
        """Answers for a sequence of maps, in the form of the original class."""
        answers = [self.own[str(i)]([maps]) if str(i) in self.own else super(LevelWise, self).forward([maps]) for i, maps in enumerate(x)]
        return join(answers)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept light weights of version 0.1.0, which have no marker; refuse the weights of a full head even where others may miss."""
        names = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
        if any(name.startswith("own.") for name in names):
            state_dict.setdefault(prefix + MARKER, getattr(self, MARKER))
        elif any(name.startswith("conv.") for name in names):
            args[-1].append(
                f"{prefix.removesuffix('.')}: these are weights of a full head, and this head is light; load them into the full model, and "
                "lighten that"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class _TensorLevels(LevelWise):
    """The same in types that TorchScript knows, for heads that return one tensor."""

    def forward(self, x: list[Tensor]) -> Tensor:
        answers: list[Tensor] = []
        for place, maps in enumerate(x):
            is_own = False
            for level, head in self.own.items():
                if int(level) == place:
                    is_own = True
                    answers.append(head([maps]))
            if not is_own:
                answers.append(self.forward_of_class([maps]))
        return torch.cat(answers, dim=1)


class _PairLevels(LevelWise):
    """The same for heads that return two tensors."""

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor]:
        first: list[Tensor] = []
        second: list[Tensor] = []
        for place, maps in enumerate(x):
            is_own = False
            for level, head in self.own.items():
                if int(level) == place:
                    is_own = True
                    one, two = head([maps])
                    first.append(one)
                    second.append(two)
            if not is_own:
                one, two = self.forward_of_class([maps])
                first.append(one)
                second.append(two)
        return torch.cat(first, dim=1), torch.cat(second, dim=1)


class _ListLevels(LevelWise):
    """The same for heads that return two lists, a tensor a level."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        first: list[Tensor] = []
        second: list[Tensor] = []
        for place, maps in enumerate(x):
            is_own = False
            for level, head in self.own.items():
                if int(level) == place:
                    is_own = True
                    one, two = head([maps])
                    first.extend(one)
                    second.extend(two)
            if not is_own:
                one, two = self.forward_of_class([maps])
                first.extend(one)
                second.extend(two)
        return first, second


def join(answers: Sequence[Any]) -> Any:
    """Join the answers of several levels: tensors along dimension 1, lists to one list, tuples of either part by part."""
    if isinstance(answers[0], Tensor):
        return torch.cat(list(answers), dim=1)
    if isinstance(answers[0], list):
        return [each for answer in answers for each in answer]
    return tuple(join(parts) for parts in zip(*answers, strict=True))


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
        weight = next(head.parameters())
        head.register_buffer(MARKER, torch.ones((), dtype=weight.dtype, device=weight.device))
    head.own[str(level)] = LevelHead.of(head, head.original, layers)
    return head
