"""How XLA compiles programs that run briefly, as the tests' do: with less polish, in less time."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from unittest import mock

# Of two ways to compile a fusion the one that takes half as long. Only JAX 0.10 has both.
EMITTERS = "xla_cpu_use_fusion_emitters"
BOTH = version("jaxlib").startswith("0.10.")
# A program isn't cut in pieces that are compiled side by side: the other core has tests of its own.
FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + f" --{EMITTERS}=false" * BOTH
)


@contextlib.contextmanager
def usual_fusions() -> Iterator[None]:
    """Where fusions are compiled in the usual way, whatever the process's flags."""
    from jax._src import compiler  # reads the flags

    real = compiler.get_compile_options

    def options(*args, env_options_overrides=None, **others):
        overrides = dict.fromkeys([EMITTERS] * BOTH, True) | (env_options_overrides or {})
        return real(*args, env_options_overrides=overrides, **others)

    with mock.patch.object(compiler, "get_compile_options", options):
        yield
