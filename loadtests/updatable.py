"""A service that can be updated while it runs, for `loadtests.faults`: `topk serve` has no such command.

    python -m loadtests.updatable FOLDER '{"http_port": …}'

Prints "ready"; for each line on standard input it redeploys the application with one setting changed, as a cluster's
changed configuration would, and prints "updated" once Serve has done so. Ends with standard input.
"""

import json
import signal
import sys
import threading
from itertools import count
from pathlib import Path

from service.rayserve.launcher import APP_NAME, LocalService
from service.settings import Settings


def main(folder: Path, settings: Settings) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
    service = LocalService(settings, folder)
    try:
        service.start(threading.Event())
        from ray import serve

        from service.rayserve.deployment import build

        print("ready", flush=True)
        for number, _ in zip(count(1), sys.stdin, strict=False):
            changed = settings.model_copy(update={"retry_after_s": settings.retry_after_s + number})
            serve.run_many([serve.RunTarget(build(changed), name=APP_NAME, route_prefix="/")])
            print("updated", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        service.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Settings(**json.loads(sys.argv[2])))
