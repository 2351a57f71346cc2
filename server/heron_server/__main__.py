"""`python -m heron_server` is `heron-server`."""

import sys

from heron_server.cli import main

sys.exit(main())
