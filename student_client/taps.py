"""Reads hidden states out of a student by module path, so that no one rewrites their model."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Taps"]

# Where peft puts the model that it gives adapters to.
_ADAPTED = "base_model.model."


class Taps:
    """Keeps the outputs of some modules of a student from its last forward pass.

    A module that returns a tuple, or an output of transformers, is read at its first value.

    Args:
        model: the student.
        paths: module paths by the name they are read under, for example `{"lower": "encoder.layer.1"}`.

    Raises:
        ValueError: the student has no such module; the message names close ones.
    """

    def __init__(self, model: nn.Module, paths: dict[str, str]) -> None:
        self._paths = dict(paths)
        self._states: dict[str, Tensor] = {}
        self._modules = {name: _submodule(model, name, path) for name, path in paths.items()}
        # A module that does not run must not be read from an earlier pass.
        self._is_running = False
        self._hooks = [
            model.register_forward_pre_hook(lambda _model, _inputs: self._begin()),
            model.register_forward_hook(lambda *_: self._end(), always_call=True),
        ]
        self._hooks += [
            module.register_forward_hook(self._keeper(name)) for name, module in self._modules.items()
        ]

    def __getitem__(self, name: str) -> Tensor:
        """Returns a module's output of the last forward pass.

        Raises:
            RuntimeError: the module did not run.
        """
        try:
            return self._states[name]
        except KeyError:
            raise RuntimeError(
                f"tap {name!r}: module {self._paths[name]!r} did not run in the last forward pass"
            ) from None

    def clear(self) -> None:
        """Forgets the last forward pass."""
        self._states.clear()

    @contextmanager
    def replaced(self, name: str, states: Tensor) -> Iterator[None]:
        """While open, the module's output is `states`, and what follows it computes from them."""

        def put(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if _is_model_output(output):
                (name, _), *_rest = output.items()
                return type(output)(**{**output, name: states})
            return (states, *output[1:]) if isinstance(output, tuple) else states

        hook = self._modules[name].register_forward_hook(put)
        kept = dict(self._states)
        try:
            yield
        finally:
            hook.remove()
            self._states = kept

    def remove(self) -> None:
        """Takes the hooks out of the student."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self) -> None:
        self.clear()
        self._is_running = True

    def _end(self) -> None:
        self._is_running = False

    def _keeper(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not self._is_running:
                return  # gradient checkpointing computes it again, in the backward pass
            states = _first(output)
            if not isinstance(states, Tensor):
                raise TypeError(
                    f"tap {name!r}: module {self._paths[name]!r} returned {type(states).__name__},"
                    " expected a tensor"
                )
            self._states[name] = states

        return keep


def _first(output: Any) -> Any:
    """Returns the first value of what a module returned: a tensor, a tuple, or an output of transformers."""
    if _is_model_output(output):
        return next(iter(output.values()), None)
    return output[0] if isinstance(output, tuple) and output else output


def _is_model_output(output: Any) -> bool:
    """Whether it is an output of transformers, without importing that."""
    return isinstance(output, Mapping) and hasattr(output, "to_tuple")


def _submodule(model: nn.Module, name: str, path: str) -> nn.Module:
    for known in (path, _ADAPTED + path):
        with contextlib.suppress(AttributeError):
            return model.get_submodule(known)
    paths = [known for known, _ in model.named_modules() if known]
    close = difflib.get_close_matches(path, paths, n=3) or paths[:3]
    raise ValueError(f"tap {name!r}: the student has no module {path!r}; did you mean {' or '.join(close)}?")
