"""Lets a module load as ever, then changes something in it: so no process imports what it has no use for."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Change = Callable[[Any], None]


def on_import(changes: Mapping[str, Change]) -> None:
    """Apply changes to modules, by name, when they are imported, or now where they were; each name once a process."""
    known = {name for finder in sys.meta_path if isinstance(finder, _Redirector) for name in finder.changes}
    new = {name: change for name, change in changes.items() if name not in known}
    if not new:
        return
    sys.meta_path.insert(0, _Redirector(new))
    for name, change in new.items():
        if name in sys.modules:
            change(sys.modules[name])


class _Redirector(importlib.abc.MetaPathFinder):
    def __init__(self, changes: Mapping[str, Change]) -> None:
        self.changes = dict(changes)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        change = self.changes.get(name)
        if change is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((own for own in found if own is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                run(module)
                change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
