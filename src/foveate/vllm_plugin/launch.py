"""How vLLM's OpenAI-compatible server is started with a spec, and what it will save; nothing here imports vLLM."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from foveate.errors import FoveateError, KeepError
from foveate.files import read_json_object
from foveate.loading import find_config
from foveate.serving import ServedSpec, SpecChoice
from foveate.serving.choice import ALLOWED_VARIABLE, DEFAULT_VARIABLE, PER_QUESTION_VARIABLE
from foveate.vllm_plugin.served import SERVER, per_question, served_model

PICTURES: Final = ((640, 480), (1024, 768), (1920, 1080))
"""Width and height of pictures whose tokens are told, in pixels."""
_MODULE: Final = "vllm.entrypoints.openai.api_server"
_GROUP: Final = "vllm.general_plugins"
_CHOSEN_PLUGINS: Final = "VLLM_PLUGINS"
_OURS: Final = {
    "--model": "name the model as MODEL",
    "--host": "give --host to foveate serve",
    "--port": "give --port to foveate serve",
    "--revision": "give --revision to foveate serve",
    "--trust-request-mm-kwargs": "use --allow, which also says which specs requests may name",
    "--mm-processor-kwargs": "use --spec; for other options of the processor, start vLLM itself with FOVEATE_SPEC",
}
"""Options of vLLM that follow from ours."""


@dataclass(frozen=True)
class Launch:
    """A server that can be started.

    Attributes:
        command: the program and its arguments.
        environment: variables beside those of this process.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def replace_process(self) -> None:
        """Become the server; this doesn't return."""
        os.execve(self.command[0], self.command, {**os.environ, **self.environment})


def chosen_specs(
    model: str,
    spec: str | None = None,
    allowed: Sequence[str] = (),
    *,
    revision: str | None = None,
    questions: bool = False,
) -> SpecChoice:
    """Return the spec of a server for a model, and those that requests may name; only config.json is read.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        spec: of the server; None is what `FOVEATE_SPEC` or the model's configuration says.
        allowed: what requests may name instead; nothing is what `FOVEATE_SPECS` says.
        revision: of a model on the hub.
        questions: whether methods may read the question, and an image is encoded anew for each; if not, what
            `FOVEATE_PER_QUESTION` says.

    Raises:
        FoveateError: there is no such model, vLLM serves it whole, it can't do one of the specs, or methods can't read
            the question there.
    """
    config = read_json_object(find_config(model, revision=revision), "configuration", "name a model's folder")
    environment = {name: os.environ.get(name, "") for name in (DEFAULT_VARIABLE, ALLOWED_VARIABLE)}
    if allowed:
        environment[ALLOWED_VARIABLE] = ";".join(allowed)
    served = served_model(config, questions or per_question())
    if questions and not served.per_question:
        raise FoveateError(f"{SERVER} can't give methods the question about an image of {served.family.title}")
    return SpecChoice(served, spec, environment)


def tokens_left(choice: SpecChoice, spec: ServedSpec) -> list[int | None]:
    """Return how many visual tokens a spec leaves of each of `PICTURES`; None where a picture has too few for it.

    Raises:
        FoveateError: all of them have too few.
    """
    left: list[int | None] = []
    refused: KeepError | None = None
    for width, height in PICTURES:
        try:
            left.append(spec.count(choice.model.image_layout(height, width)))
        except KeepError as error:
            left.append(None)
            refused = error
    if refused is not None and not any(left):
        raise refused
    return left


def launch(
    model: str,
    choice: SpecChoice,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    revision: str | None = None,
    options: Sequence[str] = (),
) -> Launch:
    """Return how to start the server. Requests may name a spec only if some are allowed.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        choice: its specs.
        host: where the server listens.
        port: where the server listens.
        revision: of a model on the hub.
        options: further ones of vLLM.

    Raises:
        FoveateError: an option of vLLM is one that follows from ours.
    """
    for option in options:
        name = option.split("=")[0].replace("_", "-")
        if name in _OURS:
            raise FoveateError(f"{name} can't be among vLLM's options here; {_OURS[name]}")
    command = [sys.executable, "-m", _MODULE, "--model", model, "--host", host, "--port", str(port)]
    environment = {DEFAULT_VARIABLE: choice.default.text, ALLOWED_VARIABLE: ""}
    if choice.model.per_question:
        environment[PER_QUESTION_VARIABLE] = "1"
    if revision is not None:
        command += ["--revision", revision]
    if choice.allowed is not None:
        command.append("--trust-request-mm-kwargs")
        environment[ALLOWED_VARIABLE] = ";".join(spec.text for spec in choice.allowed)
    if Path(model).exists():
        # The name by which clients ask for it.
        command += [] if _names_itself(options) else ["--served-model-name", Path(model).resolve().name]
    return Launch((*command, *options), environment)


def _names_itself(options: Sequence[str]) -> bool:
    return any(option.split("=")[0].replace("_", "-") == "--served-model-name" for option in options)


def check_vllm(environment: Mapping[str, str] | None = None) -> None:
    """Check that vLLM is installed and finds the plugin.

    Args:
        environment: of the process; None for its own.

    Raises:
        FoveateError: it isn't, or it doesn't, so images would keep all their tokens.
    """
    environment = os.environ if environment is None else environment
    if find_spec("vllm") is None:
        raise FoveateError("serving needs vLLM, which isn't installed; run: pip install 'foveate[vllm]'")
    if "foveate" not in {point.name for point in entry_points(group=_GROUP)}:
        raise FoveateError(
            "vLLM can't find foveate's plugin, because foveate isn't installed as a package; run: pip install "
            "'foveate[vllm]', or pip install --editable '.[vllm]' in a clone"
        )
    chosen = environment.get(_CHOSEN_PLUGINS)
    if chosen is not None and "foveate" not in chosen.split(","):
        raise FoveateError(f"{_CHOSEN_PLUGINS}={chosen} keeps foveate's plugin out of vLLM; add foveate to it")
