"""`python -m fretsaw` is `fretsaw`."""

import sys

from fretsaw.cli import main

sys.exit(main())
