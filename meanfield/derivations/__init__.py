"""One result per file: the claim as a sympy equation, its derivation checked by sympy, the function the package uses.

Every file defines RESULT, a `Derivation`. `derivations()` finds them all.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from meanfield.derivations.derivation import Derivation, Step

__all__ = ["Derivation", "Step", "derivations"]


def derivations() -> dict[str, Derivation]:
    """All results of this folder by the name of their file, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "derivation")
    return {name: import_module(f"{__name__}.{name}").RESULT for name in names}
