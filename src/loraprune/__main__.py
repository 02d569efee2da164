"""``python -m loraprune``."""

import sys

from loraprune.cli.main import main

sys.exit(main())
