"""How XLA compiles programs that run briefly, as the tests' do: with less polish, in less time."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from unittest import mock

FLAGS = "--xla_backend_optimization_level=0"  # the same programs
# Of two ways to compile a fusion the one that takes half as long, for what isn't compared bit for
# bit. Only JAX 0.10 has both.
FUSIONS = {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}
FASTEST = " ".join([FLAGS, *(f"--{name}={value}" for name, value in FUSIONS.items())])


@contextlib.contextmanager
def fusions() -> Iterator[None]:
    """Where programs are compiled with `FUSIONS`, whatever the process's flags."""
    from jax._src import compiler  # reads the flags

    real = compiler.get_compile_options

    def options(*args, env_options_overrides=None, **others):
        overrides = FUSIONS | (env_options_overrides or {})
        return real(*args, env_options_overrides=overrides, **others)

    with mock.patch.object(compiler, "get_compile_options", options):
        yield
