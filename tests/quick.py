"""The same programs, compiled with less polish: most of the tests' time is compiling."""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    # Of two ways to compile a fusion the one that takes half as long; later ones have the other
    # alone, which `make newest` tests.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
