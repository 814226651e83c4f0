"""Compress inside a model's own `forward` and `generate`, by hooks that are gone when the block ends."""

from __future__ import annotations

import warnings
import weakref
from types import TracebackType

from torch import nn

from foveate.arguments import check_kind
from foveate.engine.calls import CoreCalls
from foveate.engine.report import ImagePlans, Report
from foveate.errors import FoveateError, FoveateWarning
from foveate.families import family_of
from foveate.schedule import schedule
from foveate.spec import Spec, SpecLike, as_spec

_open: weakref.WeakKeyDictionary[nn.Module, weakref.ref[CoreCalls]] = weakref.WeakKeyDictionary()
"""What is applied to each model now, by its core. The hooks on the model keep it, so the model can be collected."""


def apply(model: nn.Module, spec: SpecLike, *, synchronise: bool = False) -> Run:
    """Give a model fewer visual tokens, for a `with` block or until `close()`.

    The model's own `forward`, `generate`, pipelines and trainers keep working: beams, left-padded batches, several
    images per prompt, text-only prompts, labels, second turns on one cache, several conversations at once. A cache
    filled under one `apply` knows what it holds and can be used again under a later one. A call of the model outside
    `apply` refuses such a cache, and an `apply` refuses one that was made anew from its tensors.

    It is the model that is changed, for all threads: a call from any of them is compressed until the `apply` ends.
    A model can't be copied or pickled meanwhile.

    >>> import foveate
    >>> model, _ = foveate.reference()
    >>> with foveate.apply(model, "cluster:64") as run:
    ...     print(run.report())
    cluster:64: no image has come yet
    >>> run = foveate.apply(model, "cluster:64")  # the same as a handle
    >>> run.close()

    Args:
        model: a model of a supported family; its weights and code aren't touched.
        spec: the steps: text such as "cluster:64", a `Spec`, a method object such as `Cluster(keep=64)`, or a list of
            these, which act one after another.
        synchronise: wait for the device around the compressor, so that its time in the report is right on CUDA.

    Returns:
        A `Run`, which acts from now on. It ends with its `with` block, with `close()`, or, with a warning, when it is
        garbage-collected.

    Raises:
        FoveateError: the model can't run the spec, or an `apply` on it is open already.
        SpecError: the spec is malformed or names an unknown method.
        UnsupportedFamily: the model is of no supported family.
    """
    run = Run(_applied(model, spec, synchronise))
    run.end_with_handle()
    return run


def attach(model: nn.Module, spec: SpecLike, *, synchronise: bool = False) -> Run:
    """Give a model fewer visual tokens for good: until `detach(model)`, whatever becomes of the handle.

    Everything else is as under `apply`.

    >>> import foveate
    >>> model, _ = foveate.reference()
    >>> run = foveate.attach(model, "cluster:64")
    >>> print(foveate.attached_spec(model))
    cluster:64
    >>> foveate.detach(model)

    Args:
        model: a model of a supported family; its weights and code aren't touched.
        spec: the steps, as for `apply`.
        synchronise: wait for the device around the compressor, so that its time in the report is right on CUDA.

    Returns:
        A `Run`, for its report and its plans; it may be dropped.

    Raises:
        FoveateError: the model can't run the spec, or one is applied to it already.
        SpecError: the spec is malformed or names an unknown method.
        UnsupportedFamily: the model is of no supported family.
    """
    return Run(_applied(model, spec, synchronise))


def detach(model: nn.Module) -> None:
    """End what `attach` or `apply` began; the model is then as it was.

    Raises:
        FoveateError: nothing is applied to the model.
        UnsupportedFamily: the model is of no supported family.
    """
    calls = _open_on(family_of(model).core)
    if calls is None:
        raise FoveateError("nothing is attached to this model, so there is nothing to detach")
    _close(calls)


def attached_spec(model: nn.Module) -> Spec | None:
    """Return the spec that `attach` or `apply` gave a model; None if it is dense.

    Raises:
        UnsupportedFamily: the model is of no supported family.
    """
    calls = _open_on(family_of(model).core)
    return None if calls is None else calls.schedule.spec


def _open_on(core: nn.Module) -> CoreCalls | None:
    found = _open.get(core)
    return None if found is None else found()


def _applied(model: nn.Module, spec: SpecLike, synchronise: bool) -> CoreCalls:
    """Put the hooks of a spec on a model.

    Raises:
        FoveateError: as `apply` says.
    """
    check_kind("synchronise", synchronise, bool, "True or False")
    family = family_of(model)
    steps = schedule(as_spec(spec), family)
    applied = _open_on(family.core)
    if applied is not None:
        earlier = applied.schedule.spec
        raise FoveateError(
            f'{earlier} is applied to this model already; compose by spec: apply(model, "{earlier}+{steps.spec}"), or '
            "end it first: detach(model)"
        )
    calls = CoreCalls(model, family, steps, synchronise)
    _open[family.core] = weakref.ref(calls)
    try:
        calls.open()
    except BaseException:
        _close(calls)
        raise
    return calls


class Run:
    """What is applied to a model: a context manager and a handle, with its report and its plans."""

    def __init__(self, calls: CoreCalls) -> None:
        self._calls = calls
        self._entered = False
        self._finalizer: weakref.finalize[..., Run] | None = None

    def end_with_handle(self) -> None:
        """End what is applied, with a warning, when this handle is garbage-collected."""
        # Hooks hold `calls` and not this handle, so the handle is collected when its last reference goes.
        self._finalizer = weakref.finalize(self, _close_forgotten, self._calls)
        self._finalizer.atexit = False

    @property
    def is_open(self) -> bool:
        """Whether it still acts."""
        return _open_on(self._calls.family.core) is self._calls

    @property
    def spec(self) -> Spec:
        """Return what is applied."""
        return self._calls.schedule.spec

    @property
    def plans(self) -> tuple[ImagePlans, ...]:
        """Return, for each of the latest 256 images, which tokens were kept in each layer and where the others went."""
        return self._calls.builder.plans()

    def report(self) -> Report:
        """Return tokens before and after, and the compressor's own time, so far; per image for the latest 1024."""
        return self._calls.builder.report()

    def close(self) -> None:
        """Take the hooks off; the model is then as it was. A second call does nothing."""
        if self._finalizer is not None:
            self._finalizer.detach()
        if self.is_open:
            _close(self._calls)

    def __enter__(self) -> Run:
        if not self.is_open:
            raise FoveateError(f"this apply of {self.spec} has ended; call foveate.apply again")
        if self._entered:
            raise FoveateError(f"this apply of {self.spec} is entered already; one with block ends it")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(calls: CoreCalls) -> None:
    calls.close()
    _open.pop(calls.family.core, None)


def _close_forgotten(calls: CoreCalls) -> None:
    """End an `apply` whose handle was garbage-collected, and warn; one that was detached has ended."""
    if _open_on(calls.family.core) is not calls:
        return
    _close(calls)
    text = str(calls.schedule.spec)
    warnings.warn(
        f'the handle of foveate.apply(model, "{text}") was dropped before it was closed, so nothing is compressed any '
        f'more; write "with foveate.apply(...):", or keep what apply returns until you close() it',
        FoveateWarning,
        stacklevel=3,
    )
