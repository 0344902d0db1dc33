"""For all tests: Ctrl-C reaches the tests and the programs that they start.

A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
"""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
