"""A process that prepares samples: reads places as JSON lines, answers with a JSON line and pixels."""

import json
import signal
import sys
import traceback
from typing import IO

from pipeline.errors import UserError
from pipeline.loading.reader import Reader
from pipeline.places import Place


def serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answers until nothing is asked any more. The first line tells what to read."""
    reader: Reader | None = None
    for line in asked:
        try:
            request = json.loads(line)
            if reader is None:
                reader = Reader.from_json(request)
                continue
            places = [Place(*place) for place in request["places"]]
            made = reader.prepare(places, tuple(request["size"]) if request["size"] else None)
            told = {
                name: getattr(made, name) for name in ("texts", "sources", "dropped", "reasons")
            }
            pixels = made.images
        except UserError as e:
            told, pixels = {"user_error": [e.message, e.hint]}, None
        except Exception:
            told, pixels = {"error": traceback.format_exc()}, None
        answers.write(json.dumps(told).encode() + b"\n")
        if pixels is not None:
            answers.write(memoryview(pixels).cast("B"))
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asked; then our input ends
    serve(sys.stdin.buffer, sys.stdout.buffer)
