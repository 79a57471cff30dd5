"""The commands: each parses, checks what can be checked without loading anything, and makes one library call."""

import signal
import sys
import threading
from pathlib import PurePath

_own_process = PurePath(sys.argv[0]).name.startswith("smp-") and "multiprocessing.spawn" not in sys.modules
_can_choose = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _own_process and _can_choose:
    # Until `_common.run` begins there is nothing to keep: Ctrl-C just ends the process, without Python's traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
