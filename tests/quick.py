"""How XLA compiles programs that run briefly, as the tests' do: with less polish, in less time."""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0"  # the same programs
# Of two ways to compile a fusion the one that takes half as long, for what isn't compared bit for
# bit. Only JAX 0.10 has both.
FUSIONS = {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}
FASTEST = " ".join([FLAGS, *(f"--{name}={value}" for name, value in FUSIONS.items())])
