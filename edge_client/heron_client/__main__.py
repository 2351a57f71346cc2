"""`python -m heron_client` is `heron-client`."""

import sys

from heron_client.cli import main

sys.exit(main())
