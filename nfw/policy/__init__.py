"""The policy: read, checked, compiled.

::

    FILE.yaml ──yamlpos──► nodes with line and column ──loader──► Policy ──compile──► what packets meet
                                        │ read_stateless, read_tls, read_stateful, variables
                                        └──► every error at once: file:line:column: what, and what was expected
    AWS documents ──jsonpos, yamlpos──► nodes ──aws──► Policy, by way of the same values

``load_policy`` and ``compile_policy`` change nothing outside the process; ``dump_policy`` writes a policy back.
Names are imported on first use, because the command line should not wait for engines it does not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled, compile_policy
    from nfw.policy.dump import dump_policy
    from nfw.policy.errors import Level, PolicyError, PolicyErrors
    from nfw.policy.loader import load_policy
    from nfw.policy.model import Policy

__all__ = [
    "Compiled",
    "Level",
    "Policy",
    "PolicyError",
    "PolicyErrors",
    "compile_policy",
    "dump_policy",
    "load_policy",
]

_HOMES = {
    "Compiled": "compile",
    "compile_policy": "compile",
    "dump_policy": "dump",
    "Level": "errors",
    "PolicyError": "errors",
    "PolicyErrors": "errors",
    "load_policy": "loader",
    "Policy": "model",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
