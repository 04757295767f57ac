"""A name that is none of those known: one sentence, with the nearest that is."""

from collections.abc import Iterable
from difflib import get_close_matches


def check_choice(what: str, given: object, known: Iterable[str]) -> None:
    """Raise ValueError where `given` is not in `known`; `what` says what it names."""
    names = list(known)
    if given not in names:
        raise ValueError(
            f"{what} must be one of {', '.join(names)}, got {given!r}{nearest(given, names)}"
        )


def nearest(given: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where one of `known` is near, else nothing."""
    names = {name.lower(): name for name in known}
    found = get_close_matches(str(given).lower(), names, n=1)
    return f"; did you mean {names[found[0]]!r}?" if found else ""
