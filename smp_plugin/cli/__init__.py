"""The commands: each parses, checks what can be checked without loading anything, and makes one library call."""

import signal
import sys
from pathlib import PurePath

if PurePath(sys.argv[0]).name.startswith("smp-") and "multiprocessing.spawn" not in sys.modules:
    # Until `_common.run` begins there is nothing to keep: Ctrl-C just ends the process, without Python's traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
