"""Operations and bytes of a program, counted from shapes. (XLA's own count takes a loop's body
once and sees nothing inside kernels.)"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax


class Cost(NamedTuple):
    """What a program does at least.

    Attributes:
        operations: of floating point, in all matrix products and convolutions; a multiplication and
            an addition are two.
        bytes: of what goes in and comes out, each once.
    """

    operations: int
    bytes: int


def cost(function: Callable, *args: Any) -> Cost:
    """The cost of `function(*args)`.

    Args:
        function: of arrays; it is traced and not run.
        args: pytrees of arrays, which may be abstract (`jax.ShapeDtypeStruct`).

    Returns:
        Operations and bytes. Loops count as often as they run (a `while` once), of a conditional
        its dearest branch.
    """
    program = jax.make_jaxpr(function)(*args).jaxpr
    ends = [*program.invars, *program.outvars]
    moved = sum(math.prod(end.aval.shape) * end.aval.dtype.itemsize for end in ends)
    return Cost(_operations(program), moved)


def _operations(program: Any) -> int:
    total = 0
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            each = math.prod(shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * each
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
        elif name == "cond":
            total += max(map(_operations, _inside(params["branches"])))
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(_operations, _inside(tuple(params.values()))))
    return total


def _inside(value: Any) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _inside(part)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _inside(value.jaxpr)
