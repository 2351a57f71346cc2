"""`python -m heron_cli` is `heron`."""

import sys

from heron_cli.cli import main

sys.exit(main())
