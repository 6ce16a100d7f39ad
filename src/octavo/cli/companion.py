"""The command line in a process that ends with the one that started it: `python -m octavo.cli.companion ARGUMENTS`.

Whoever starts it keeps the other end of its standard input. When that ends, so does the command, as by SIGTERM, and if
it does not end at once, as by a second one.
"""

import os
import signal
import threading
import time

from octavo.__main__ import main

GRACE_SECONDS = 1.0


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    main()
