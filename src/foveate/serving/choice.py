"""Which spec a request gets: its own, the server's, or the one that was saved with the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from foveate.errors import FoveateError, shown
from foveate.serving.model import DENSE, ServedModel, ServedSpec

CONFIG_KEY = "foveate"
"""The field of config.json, and the key among a processor's options, that names a spec."""
DEFAULT_VARIABLE = "FOVEATE_SPEC"
"""The environment variable with the server's spec."""
PER_QUESTION_VARIABLE = "FOVEATE_PER_QUESTION"
"""The environment variable that lets methods read the question, if it is 1; images are encoded for each question."""
ALLOWED_VARIABLE = "FOVEATE_SPECS"
"""The environment variable with the specs that requests may name, apart by semicolons."""


def saved_spec(config: Any) -> str | None:
    """Return the spec that a model's configuration names; None if it names none.

    >>> saved_spec({"model_type": "llava", "foveate": {"spec": "cluster:64"}})
    'cluster:64'

    Args:
        config: an object of transformers, or a mapping as config.json holds it.

    Raises:
        FoveateError: the field is there and holds something else.
    """
    field = _value(config, CONFIG_KEY)
    if field is None:
        return None
    spec = _value(field, "spec")
    if not isinstance(spec, str):
        raise FoveateError(
            f'{CONFIG_KEY} of the configuration must be {{"spec": "cluster:64"}} or the like, not {shown(field)}'
        )
    return spec


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


class SpecChoice:
    """The spec of a server, and those that its requests may name instead.

    The server's own is, in this order, what its options say, `FOVEATE_SPEC`, what the model's configuration says, or no
    step at all. If `FOVEATE_SPECS` is set, a request may name that one or one of these, and no other.

    >>> clip = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
    >>> model = ServedModel({"model_type": "llava", "vision_config": clip, "foveate": {"spec": "cluster:144"}})
    >>> choice = SpecChoice(model, environment={"FOVEATE_SPECS": "cluster:64; dense"})
    >>> choice.of_request(None).text, choice.of_request("cluster:64:start=stride").text
    ('cluster:144', 'cluster:64')
    >>> choice.of_request("cluster:16")
    Traceback (most recent call last):
    foveate.errors.FoveateError: cluster:16 is not among the specs of this server: cluster:144, cluster:64, dense

    Args:
        model: that is served.
        option: the spec among the server's options; None if there is none.
        environment: of the process; None for its own.

    Raises:
        FoveateError: one of these specs is malformed, or the model or the server can't do it.
    """

    def __init__(self, model: ServedModel, option: object = None, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self.model = model
        given = option if option is not None else environment.get(DEFAULT_VARIABLE) or saved_spec(model.family.config)
        self.default: ServedSpec = self._spec(DENSE if given is None else given)
        self.allowed: tuple[ServedSpec, ...] | None = None
        written = [text for text in environment.get(ALLOWED_VARIABLE, "").split(";") if text.strip()]
        if written:
            self.allowed = tuple(dict.fromkeys((self.default, *map(self._spec, written))))

    def of_request(self, spec: object = None) -> ServedSpec:
        """Return the spec of a request.

        Args:
            spec: what the request names; None if it names none.

        Raises:
            FoveateError: it is malformed, isn't among those that the server allows, or can't be served.
        """
        if spec is None:
            return self.default
        found = self._spec(spec)
        if self.allowed is not None and found not in self.allowed:
            names = ", ".join(each.text for each in self.allowed)
            raise FoveateError(f"{found.text} is not among the specs of this server: {names}")
        return found

    def _spec(self, spec: object) -> ServedSpec:
        if not isinstance(spec, str):
            raise FoveateError(f'a spec in a request or an option is text such as "cluster:64", not {shown(spec)}')
        return self.model.spec(spec)
