"""`python -m tt_jax`: the command line."""

import sys

from tt_jax.cli import main

sys.exit(main())
