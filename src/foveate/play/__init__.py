"""A page to play with: answers side by side, what is kept, what it costs, and results of a benchmark, in the browser.

`foveate play` starts it. `page` has the components and their events, and is the only module that imports Gradio; all
others take plain data and return plain data.
"""

from __future__ import annotations

__all__ = ["check_installed"]


def check_installed() -> None:
    """Check that Gradio is installed.

    Raises:
        FoveateError: it isn't.
    """
    from importlib.util import find_spec

    from foveate.errors import FoveateError

    if find_spec("gradio") is None:
        raise FoveateError("foveate play needs Gradio, which the extra play brings: pip install 'foveate[play]'")
