"""Tests beside lmms-eval run in an environment of their own: `nox -s lmms`."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("lmms_eval") is not None:
    sys.path.insert(0, str(Path(__file__).parent))
    import operators  # noqa: F401
