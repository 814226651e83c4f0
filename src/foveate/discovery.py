"""Find what registers itself: every module of a package, and those that installed packages name as entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import threading


class Discovery:
    """Imports plugins once, in a stable order: the package's own modules by name, then entry points.

    Args:
        package: whose modules are imported; its subpackages are not.
        group: of entry points in installed packages.
    """

    def __init__(self, package: str, group: str) -> None:
        self.package, self.group = package, group
        self.loaded = False
        self._lock = threading.RLock()

    def load(self) -> None:
        """Import everything, at the first call.

        Other threads wait until all is imported. A module that asks again while it is itself imported here goes on.
        """
        with self._lock:
            if self.loaded:
                return
            self.loaded = True
            try:
                for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                    if not module.ispkg:
                        importlib.import_module(f"{self.package}.{module.name}")
                for entry in importlib.metadata.entry_points(group=self.group):
                    entry.load()
            except BaseException:
                self.loaded = False
                raise
