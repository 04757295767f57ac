"""The hooks that Module.__call__ looks for."""

from __future__ import annotations

from typing import Any

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def has_hooks(known: dict[str, Any]) -> bool:
    """Whether something is to be called at a call of the module with these attributes."""
    return bool(
        known["_forward_pre_hooks"]
        or known["_forward_hooks"]
        or known["_backward_pre_hooks"]
        or known["_backward_hooks"]
    )
