"""`python -m xaiclip` is the command `xaiclip`."""

import sys

from xaiclip.cli import main

sys.exit(main())
