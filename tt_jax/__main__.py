"""`python -m tt_jax`: the command line."""

import sys

from tt_jax.cli.main import main

sys.exit(main())
