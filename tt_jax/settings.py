"""Checks of settings where they are made: one sentence with the name, the rule and the value."""

import dataclasses
import math
import numbers
from typing import Any


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number of Python or NumPy.

    Args:
        name: what the sentence calls it.
        value: the setting; a truth value is none.
        least: the smallest that is taken.
        most: the largest that is taken, any if not given.

    Returns:
        The number as an int.

    Raises:
        ValueError: it is of another type or out of range.
    """
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number: Any = value
    if not fits or number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, not {value!r}.")
    return int(value)


def real(name: str, value: Any) -> float:
    """A finite number of Python or NumPy.

    Args:
        name: what the sentence calls it.
        value: the setting; a truth value is none.

    Returns:
        The number as a float.

    Raises:
        ValueError: it is of another type (an array of JAX, say), infinite or NaN.
    """
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fits or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}.")
    return float(value)


def truth(name: str, value: Any) -> bool:
    """True or False.

    Args:
        name: what the sentence calls it.
        value: the setting.

    Returns:
        The setting.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}.")
    return value


def sizes(config: Any) -> None:
    """Checks the sizes of a network.

    Args:
        config: a dataclass; its fields that are `int` are looked at.

    Raises:
        ValueError: one isn't a whole number of at least 1.
    """
    for field in dataclasses.fields(config):
        if field.type is int:
            whole(f"{type(config).__name__}'s {field.name}", getattr(config, field.name), 1)
