"""``python -m dsr_kernels`` is the same as ``dsr``."""

import sys

from dsr_kernels.cli import main

sys.exit(main())
