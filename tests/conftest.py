"""Shapes and dtypes in signatures are checked in tests; drawn cases are the same each time."""

from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports foveate. Modules whose annotations say what a tensor holds.
CHECKED = ("foveate.keep", "foveate.plan", "foveate.tokens", "foveate.method", "foveate.methods")
install_import_hook(list(CHECKED), "beartype.beartype")

# --doctest-modules would import each conftest again, under one name for all.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

# A change is not refused for a case that somebody else's change would have met. To look for new ones:
# pytest --hypothesis-profile=explore
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")
