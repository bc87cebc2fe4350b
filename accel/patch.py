"""The only code that touches a model: hooks mark the running site, a mode swaps its attention call.

Each global site gets a forward pre-hook and an always-called forward hook, which say which layer is running. Inside
the context a `torch.overrides.TorchFunctionMode` sees every `F.scaled_dot_product_attention`, however the model
imported it; a call made while a site is running is answered by the policy of that layer, all others pass.
Nothing is copied from the model and nothing is stored on it but the hooks, which leave with the context.

Only the thread that entered the context is patched; do not run the same model in another thread meanwhile.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from accel.errors import AccelError
from accel.policies import Context
from accel.sites import Site, sites


class ScheduleLike(Protocol):
    """What `patch` needs of a schedule."""

    layout: Any
    policies: Sequence[Any]


@dataclass
class Applied:
    """What really happened at each site: `forwards[layer]` forwards, `calls[layer]` intercepted attention calls."""

    names: tuple[str, ...]
    forwards: list[int]
    calls: list[int]

    def check(self) -> None:
        """Raise AccelError when a site ran and none of its attention calls was seen."""
        for name, forwards, calls in zip(self.names, self.forwards, self.calls, strict=True):
            if forwards and not calls:
                raise AccelError(
                    f"{name} ran {forwards} times and never called F.scaled_dot_product_attention; "
                    f"switch the model to that function (fused attention on, no xFormers)"
                )


class _Marker:
    """What is known of the layer that is running now (None outside the sites), for one `patch` or `record`."""

    def __init__(self, kind: str, found: list[Site]):
        self.kind = kind
        self.running: Context | None = None
        self.last, self.memory = -1, {}
        self.applied = Applied(tuple(s.name for s in found), [0] * len(found), [0] * len(found))


class _Enter:
    def __init__(self, marker: _Marker, layer: int):
        self.marker, self.layer = marker, layer

    def __call__(self, module: nn.Module, args: tuple) -> None:
        marker = self.marker
        if self.layer <= marker.last:  # another forward begins
            marker.memory = {}
        marker.last = self.layer
        tokens = args[0] if args and isinstance(args[0], Tensor) and args[0].ndim == 3 else None
        marker.running = Context(self.layer, tokens, marker.memory)
        marker.applied.forwards[self.layer] += 1


class _Leave:
    def __init__(self, marker: _Marker):
        self.marker = marker

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.marker.running = None


def _markers(module: nn.Module) -> list[_Marker]:
    """The markers of all contexts open on this module, outermost first."""
    return [hook.marker for hook in module._forward_pre_hooks.values() if isinstance(hook, _Enter)]


def _plain(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """(q, k, v, scale) of an attention call that is a plain softmax; AccelError for any other."""
    for name, given in (
        ("attn_mask", attn_mask is not None),
        ("dropout_p", dropout_p > 0),
        ("is_causal", is_causal),
        ("enable_gqa", enable_gqa),
    ):
        if given:
            raise AccelError(f"a global site calls attention with {name}; only plain softmax attention can be replaced")
    return query, key, value, scale


class _Swap(TorchFunctionMode):
    """Answers the attention calls of running sites by `handle(context, call, q, k, v, scale)`."""

    def __init__(self, marker: _Marker, handle: Callable):
        super().__init__()
        self.marker, self.handle = marker, handle

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        context = self.marker.running
        if func is not F.scaled_dot_product_attention or context is None:
            return func(*args, **kwargs)
        q, k, v, scale = _plain(*args, **kwargs)
        self.marker.applied.calls[context.layer] += 1
        return self.handle(context, lambda: func(*args, **kwargs), q, k, v, scale)


class _Context(ABC):
    """Hooks and mode of one `patch` or `record`, put on by `with` and taken off by leaving it."""

    kind: str

    def __init__(self, model: nn.Module):
        self.sites = sites(model)
        self.marker: _Marker | None = None

    @abstractmethod
    def handle(self, context: Context, call: Callable[[], Tensor], q: Tensor, k: Tensor, v: Tensor, scale) -> Tensor:
        """The answer to an attention call of a site; `call` is the model's own."""

    def __enter__(self) -> Applied:
        if self.marker is not None:
            raise AccelError(f"this {self.kind} is already open; leave it first")
        outer = {m.kind for site in self.sites for m in _markers(site.module)}
        if self.kind == "patch" and outer:
            raise AccelError(
                f"patch inside an open {outer.pop()} of the same model; leave that first (patch outermost)"
            )
        self.marker = _Marker(self.kind, self.sites)
        self.handles = []
        for site in self.sites:
            self.handles.append(site.module.register_forward_pre_hook(_Enter(self.marker, site.layer)))
            self.handles.append(site.module.register_forward_hook(_Leave(self.marker), always_call=True))
        self.mode = _Swap(self.marker, self.handle)
        self.mode.__enter__()
        return self.marker.applied

    def __exit__(self, kind, error, trace) -> None:
        self.mode.__exit__(kind, error, trace)
        for handle in self.handles:
            handle.remove()
        applied, self.marker = self.marker.applied, None
        if error is None:
            applied.check()


class _Patch(_Context):
    kind = "patch"

    def __init__(self, model: nn.Module, schedule: ScheduleLike):
        super().__init__(model)
        self.layout, self.policies = schedule.layout, tuple(schedule.policies)
        if len(self.policies) != len(self.sites):
            raise AccelError(
                f"the schedule has {len(self.policies)} policies and the model {len(self.sites)} global layers; "
                f"give one policy per layer"
            )
        for policy in self.policies:
            policy.check(self.layout)

    def handle(self, context, call, q, k, v, scale):
        self.layout.check(q.shape[-2])
        self.layout.check(k.shape[-2])
        policy = self.policies[context.layer]
        if policy.name == "exact":
            return call()
        return policy.attend(q, k, v, self.layout, scale=scale, context=context)


class _Record(_Context):
    kind = "record"

    def __init__(self, model: nn.Module, fn: Callable[[Context, Tensor, Tensor, Tensor], None]):
        super().__init__(model)
        self.fn = fn

    def handle(self, context, call, q, k, v, scale):
        if scale is not None:
            q_seen = q * (scale * q.shape[-1] ** 0.5)
        else:
            q_seen = q
        markers = _markers(self.sites[context.layer].module)
        running = [marker.running for marker in markers]
        for marker in markers:
            marker.running = None  # the attention that fn itself does is nobody's site
        try:
            self.fn(context, q_seen, k, v)
        finally:
            for marker, before in zip(markers, running, strict=True):
                marker.running = before
        return call()


def patch(model: nn.Module, schedule: ScheduleLike) -> _Patch:
    """Context manager that puts `schedule.policies[layer]` at each global site of `model`; yields an `Applied`.

    `schedule` is anything with `.layout` and `.policies`, one per site. The exact policy is the model's own call, so
    its output is bit-identical. AccelError: a wrong number of policies, a policy that cannot take the layout, tokens
    that are not the layout's, a masked, causal, grouped or dropped-out attention call, a nested patch, and on leaving
    a site that ran without its attention being seen. Leaving restores the model, also after an exception; the object
    can then be entered again.
    """
    return _Patch(model, schedule)


def record(model: nn.Module, fn: Callable[[Context, Tensor, Tensor, Tensor], None]) -> _Record:
    """Context manager that calls `fn(context, q, k, v)` at each global site and leaves the output bit-identical.

    q, k, v are (B, H, N, D), after norm and rotation; the logits are q.k * D**-0.5 (a model with another scale has it
    folded into the q that fn sees). Inside a `patch` fn sees them before the policy; `fn` may itself call attention.
    """
    return _Record(model, fn)


@contextmanager
def observe(modules: Sequence[nn.Module], fn: Callable[[int, tuple, Any], None]) -> Iterator[None]:
    """Context manager that calls `fn(i, args, output)` after each forward of `modules[i]`, and changes nothing."""

    def hook(i: int) -> Callable:
        def call(module: nn.Module, args: tuple, output: Any) -> None:
            fn(i, args, output)

        return call

    with ExitStack() as stack:
        for i, module in enumerate(modules):
            stack.callback(module.register_forward_hook(hook(i)).remove)
        yield
