"""Modules that are laid out for weights which are given to them right after."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInit(TorchFunctionMode):
    """Leaves alone whatever tensor a function of `torch.nn.init` is to fill."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_storage() -> Iterator[None]:
    """Have modules made of shapes alone; their weights are to be assigned.

    No initial value is drawn: on the meta device that would import torch's compiler, a second's
    work, to compute nothing.
    """
    with torch.device("meta"), _NoInit():
        yield
