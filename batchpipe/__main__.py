"""``python -m batchpipe``, and what the ``batchpipe`` command calls. Ctrl-C ends it without a traceback from the first
import on, which takes a moment; before that Python is still starting, and nobody can take it.
"""

import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(130)  # nothing has begun; an exception within an import would be wrapped, printed or dropped


def main() -> None:
    """Run the command line. Never returns."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody ignores or handles it
    if is_ours:
        signal.signal(signal.SIGINT, _leave)
    from batchpipe.cli import main as run
    from batchpipe.cli.interrupts import interrupt

    try:
        if is_ours:
            signal.signal(signal.SIGINT, interrupt)
        run()
    except KeyboardInterrupt:  # before ``run`` itself looks for it
        sys.exit(130)


if __name__ == "__main__":
    main()
