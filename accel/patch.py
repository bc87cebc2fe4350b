"""The only code that touches a model: a seam at each global site, and what stands at it while a context is open.

A site's `forward` is shadowed, on the instance, by a `_Seam` that calls the module's own forward. When somebody wants
the attention of that site, the own forward runs under a `torch.overrides.TorchFunctionMode` that sees every
`F.scaled_dot_product_attention`, however the model imported it. Nothing is copied from the model; a layer that stays
exact runs without the mode, so it costs one Python call; when the last context leaves, the shadow is removed.

Why an instance `forward` and not hooks: Dynamo guards on the former, so that a block compiled before is traced again,
and it ignores hooks that come later.

A patched model refuses to be copied or pickled, and is not to be run in two threads at once.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from accel.errors import AccelError
from accel.policies import Context
from accel.sites import Site, left_exact, sites

_LOG = logging.getLogger(__name__)
_ALL_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


class ScheduleLike(Protocol):
    """What `patch` needs of a schedule."""

    layout: Any
    policies: Sequence[Any]


@dataclass
class Applied:
    """What really happened at each site.

    forwards[layer]: forwards of the site that came to their end. calls[layer]: attention calls that the policy (or
    `record`'s function) was given. Both are 0 where the policy is exact, because those sites are left alone.
    fallbacks[layer]: one reason for every call that the policy could not answer and the model's own attention did.
    left_exact: attention between frames that is no site.
    """

    names: tuple[str, ...]
    policies: tuple[Any, ...]
    left_exact: tuple[str, ...]
    forwards: list[int] = field(init=False)
    calls: list[int] = field(init=False)
    fallbacks: dict[int, list[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.forwards, self.calls = [0] * len(self.names), [0] * len(self.names)

    def check(self) -> None:
        """Raise AccelError when a site ran and none of its attention calls was seen."""
        for name, policy, forwards, calls in zip(self.names, self.policies, self.forwards, self.calls, strict=True):
            if forwards and not calls and not _is_exact(policy):
                raise AccelError(
                    f"{name} ran {forwards} times and never called F.scaled_dot_product_attention; "
                    f"switch the model to that function (fused attention on, no xFormers)"
                )

    def table(self) -> Table:
        """What ran where, as a rich table: one row per site, then the attention that is no site."""
        table = Table("layer", "site", "policy", "calls", "what ran")
        for layer, (name, policy) in enumerate(zip(self.names, self.policies, strict=True)):
            failed = self.fallbacks.get(layer, ())
            if _is_exact(policy):
                ran = "untouched"
            elif failed:
                ran = f"exact in {len(failed)} of {self.calls[layer]} calls: {failed[-1]}"
            else:
                ran = "as planned" if self.calls[layer] else "did not run"
            table.add_row(str(layer), name, "-" if policy is None else policy.describe(), str(self.calls[layer]), ran)
        for name in self.left_exact:
            table.add_row("-", name, "no site", "-", "the model's own attention")
        return table


def _is_exact(policy: Any) -> bool:
    return policy is not None and policy.name == "exact"


def out_of_memory(error: BaseException) -> bool:
    """Whether this is one of the ways in which torch and Python say that memory is at an end."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(s in text for s in ("out of memory", "can't allocate memory", "not enough memory"))


def _plain(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """(q, k, v, scale) of an attention call that is a plain softmax; AccelError for any other."""
    for name, given in (
        ("attn_mask", attn_mask is not None),
        ("dropout_p", dropout_p > 0),
        ("is_causal", is_causal),
        ("enable_gqa", enable_gqa),
    ):
        if given:
            raise AccelError(
                f"a global site calls attention with {name}; only plain softmax attention can be replaced: give this "
                f"layer Exact(), which leaves its call alone"
            )
    return query, key, value, scale


class _Swap(TorchFunctionMode):
    """Hands the attention calls made below it to the contexts of a seam; switched off while they answer."""

    def __init__(self, seam: "_Seam"):
        super().__init__()
        self.seam = seam

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.seam.contexts:
            return func(*args, **kwargs)
        return self.seam.answer(partial(func, *args, **kwargs), *_plain(*args, **kwargs))


class _Seam:
    """Stands in for the forward of one site while contexts are open on it, outermost first in `contexts`."""

    def __init__(self, site: Site):
        self.module, self.layer = site.module, site.layer
        self.shadowed = vars(site.module).get("forward")  # somebody else's instance forward, put back at the end
        self.original = site.module.forward
        self.contexts: list[_Context] = []
        self.mode = _Swap(self)
        # made here and not by decorators: torch.compiler.disable imports Dynamo, 2 s that `import accel` need not take
        self.untraced = torch.compiler.disable(self._forward, recursive=False)
        self.answer = torch.compiler.disable(self._answer)

    @staticmethod
    def on(module: nn.Module) -> "_Seam | None":
        forward = vars(module).get("forward")
        return forward if isinstance(forward, _Seam) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.untraced(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        first = next(iter((*args, *kwargs.values())), None)
        tokens = first if isinstance(first, Tensor) and first.ndim == 3 else None
        for context in self.contexts:
            context.enter(self.layer, tokens)
        done = False
        try:
            with self.mode:
                out = self.original(*args, **kwargs)
            done = True
            return out
        finally:
            for context in self.contexts:
                context.leave(self.layer, done)

    def _answer(self, call: Callable[[], Tensor], q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Innermost context first, each with the next one's answer as `call`; the model's own call is the last."""
        for context in self.contexts:
            call = partial(context.answer, self.layer, call, q, k, v, scale)
        return call()

    def __reduce_ex__(self, protocol: int) -> Any:
        raise AccelError(
            "this model is inside an open patch or record, which a copy or a pickle of it could never leave; leave it "
            "first, or take the state_dict"
        )

    def close(self, context: "_Context") -> None:
        self.contexts.remove(context)
        if self.contexts or _Seam.on(self.module) is not self:
            return  # under a foreign forward that was put on later, an empty seam just calls the original
        if self.shadowed is None:
            del self.module.forward
        else:
            self.module.forward = self.shadowed


class _Context(ABC):
    """One `patch` or `record`: put on by `with`, taken off by leaving it."""

    kind: str

    def __init__(self, model: nn.Module):
        self.sites, self.left_exact = sites(model), left_exact(model)
        self.applied: Applied | None = None  # while open

    def policy(self, layer: int) -> Any:
        return None

    def watches(self, layer: int) -> bool:
        """Whether this layer is wanted; one that nobody wants gets no seam."""
        return True

    @abstractmethod
    def handle(self, context: Context, call: Callable[[], Tensor], q: Tensor, k: Tensor, v: Tensor, scale) -> Tensor:
        """The answer to an attention call of a site; `call` is the model's own, or that of a context around."""

    def answer(self, layer: int, call: Callable[[], Tensor], q: Tensor, k: Tensor, v: Tensor, scale) -> Tensor:
        self.applied.calls[layer] += 1
        return self.handle(Context(layer, self.tokens, self.memory), call, q, k, v, scale)

    def enter(self, layer: int, tokens: Tensor | None) -> None:
        """Note that a site begins."""
        if layer <= self.last:  # another forward begins
            self.memory = {}
        self.last, self.tokens = layer, tokens

    def leave(self, layer: int, done: bool) -> None:
        """Let go of what belongs to the site, and after the last one of what belongs to the forward."""
        self.applied.forwards[layer] += done
        self.tokens = None
        if layer == self.seams[-1].layer:
            self.memory = {}

    def __enter__(self) -> Applied:
        if self.applied is not None:
            raise AccelError(f"this {self.kind} is already open; leave it first")
        seams = [_Seam.on(site.module) for site in self.sites]
        outer = {context.kind for seam in seams if seam for context in seam.contexts}
        if self.kind == "patch" and outer:
            raise AccelError(
                f"patch inside an open {outer.pop()} of the same model; leave that first (patch outermost)"
            )
        names, policies = zip(*((site.name, self.policy(site.layer)) for site in self.sites), strict=True)
        self.applied = Applied(names, policies, self.left_exact)
        self.last, self.tokens, self.memory = -1, None, {}
        self.seams = []
        for site, seam in zip(self.sites, seams, strict=True):
            if self.watches(site.layer):
                if seam is None:
                    site.module.forward = seam = _Seam(site)
                seam.contexts.append(self)
                self.seams.append(seam)
        return self.applied

    def __exit__(self, kind, error, trace) -> None:
        for seam in self.seams:
            seam.close(self)
        applied, self.applied = self.applied, None
        self.tokens, self.memory, self.seams = None, {}, []
        if error is None:
            applied.check()


class _Patch(_Context):
    kind = "patch"

    def __init__(self, model: nn.Module, schedule: ScheduleLike, attend: Callable[..., Tensor] | None):
        super().__init__(model)
        self.attend = attend
        self.layout, self.policies = schedule.layout, tuple(schedule.policies)
        if len(self.policies) != len(self.sites):
            raise AccelError(
                f"the schedule has {len(self.policies)} policies and the model {len(self.sites)} global layers; "
                f"give one policy per layer"
            )
        if self.layout.special != self.sites[0].special:
            raise AccelError(
                f"the schedule's layout has {self.layout.special} special tokens per frame and the model "
                f"{self.sites[0].special}; make the layout by accel.sites.layout_of(model, images)"
            )
        for policy in self.policies:
            policy.check(self.layout)

    def policy(self, layer: int) -> Any:
        return self.policies[layer]

    def watches(self, layer: int) -> bool:
        return self.attend is not None or not _is_exact(self.policies[layer])

    def handle(self, context, call, q, k, v, scale):
        if self.attend is not None:
            with sdpa_kernel(_ALL_KERNELS):
                return self.attend(self.policies[context.layer], q, k, v, scale=scale, context=context)
        self.layout.check(q.shape[-2])
        self.layout.check(k.shape[-2])
        try:
            with sdpa_kernel(_ALL_KERNELS):  # Pi3 forbids the kernels that a policy may need
                return self.policies[context.layer].attend(q, k, v, self.layout, scale=scale, context=context)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
        name, policy = self.applied.names[context.layer], self.policies[context.layer]
        _LOG.warning("%s: policy %r ran out of memory, exact attention instead (%s)", name, policy.name, reason)
        self.applied.fallbacks.setdefault(context.layer, []).append(reason)
        return call()  # outside the handler: the traceback no longer holds the policy's temporaries


class _Record(_Context):
    kind = "record"

    def __init__(self, model: nn.Module, fn: Callable[[Context, Tensor, Tensor, Tensor], None]):
        super().__init__(model)
        self.fn = fn

    def handle(self, context, call, q, k, v, scale):
        with sdpa_kernel(_ALL_KERNELS):
            self.fn(context, q if scale is None else q * (scale * q.shape[-1] ** 0.5), k, v)
        return call()


def patch(model: nn.Module, schedule: ScheduleLike, *, attend: Callable[..., Tensor] | None = None) -> _Patch:
    """Context manager that puts `schedule.policies[layer]` at each global site of `model`; yields an `Applied`.

    `schedule` is anything with `.layout` and `.policies`, one per site (`accel.sites.layout_of(model, images)` makes
    the layout of any known model). A layer whose policy is exact is left alone, so its output is bit-identical.

    A policy that runs out of memory is answered by the model's own attention, with a logged warning and a line in
    `Applied.fallbacks`; in a compiled block, where nothing can step in between, the error comes out instead.

    attend(policy, q, k, v, scale=, context=), where given, answers every layer, exact ones too, instead of
    `policy.attend`, on as many tokens as it pleases and without a fallback: `accel.distributed` exchanges keys there.

    AccelError: a wrong number of policies, a policy that cannot take the layout, another number of tokens than the
    layout's (at a layer that is not exact; another grid or other frames of as many tokens cannot be told apart here), a
    masked, causal, grouped or dropped-out attention call, a nested patch, and on leaving a site that ran without its
    attention being seen. Leaving restores the model, also after an exception, and keeps no tensor; the object can then
    be entered again.
    """
    return _Patch(model, schedule, attend)


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
