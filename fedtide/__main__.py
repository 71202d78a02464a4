"""`python -m fedtide`."""

import sys

from fedtide.cli import main

sys.exit(main())
