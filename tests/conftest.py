"""Shapes and dtypes in signatures are checked in tests, and cost nothing elsewhere."""

from jaxtyping import install_import_hook

# Before anything imports foveate. Modules whose annotations say what a tensor holds.
CHECKED = ("foveate.plan", "foveate.tokens", "foveate.methods")
install_import_hook(list(CHECKED), "beartype.beartype")

# --doctest-modules would import each conftest again, under one name for all.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]
