"""An engine process that some requests kill: `poison:K` does so when it has brought K tokens of it, always after it has
sent them."""

import os
import signal
import sys
from collections import Counter
from typing import ClassVar

import zmq

from octavo.engine import process
from octavo.engine.request import Output


class FragileServer(process.EngineServer):
    """Dies of poison."""

    _brought: ClassVar[Counter[str]] = Counter()

    def _send(self, outputs: list[Output]) -> None:
        super()._send(outputs)
        for output in outputs:
            self._brought[output.request_id] += len(output.token_ids)
            name, _, deadly = output.request_id.partition(":")
            if name.startswith("poison") and self._brought[output.request_id] >= int(deadly):
                self._endpoint._socket.close(linger=-1)
                zmq.Context.instance().term()  # what was sent is on its way
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    process.EngineServer = FragileServer  # type: ignore[misc]
    sys.exit(process.main())
