"""Whether the arrays of a record are what its fields say."""

import dataclasses
import re
from typing import Any, TypeVar, cast

from jaxtyping import jaxtyped

Record = TypeVar("Record")


def checked(record: Record) -> Record:
    """`record`, where it is made: a dataclass that is a pytree.

    JAX makes such a dataclass anew with whatever goes through its transformations (arrays with
    another axis in front, placeholders), so that its fields can't be checked whenever one is made.

    Args:
        record: a dataclass whose fields have jaxtyping's annotations.

    Returns:
        The same.

    Raises:
        TypeError: a field isn't what its annotation says; axes of one name have one size in all
            fields of the record.
    """
    with jaxtyped("context"):
        for field in dataclasses.fields(cast(Any, record)):
            value, kind = getattr(record, field.name), cast(Any, field.type)
            if kind is not Any and not isinstance(value, kind):
                raise TypeError(
                    f"{type(record).__name__}.{field.name} must be {_words(field.type)}, "
                    f"not {_words(value)}."
                )
    return record


def _words(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    # A jaxtyping shape's name, without the modules in it.
    return re.sub(r"(\w+\.)+(?=[A-Z])", "", getattr(value, "__name__", None) or str(value))
