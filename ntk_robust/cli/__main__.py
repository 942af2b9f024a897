"""`python -m ntk_robust.cli` is `ntk-robust`."""

import sys

from ntk_robust.cli._main import main

sys.exit(main())
