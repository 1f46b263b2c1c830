"""The HTTP backend against a server that takes its time: are all its places filled, all the time?

`python -m tests.benchmarks.bench_chat [--quick]`

A server in a process of its own answers any number of requests, each after 200 ms. The captioning
stage, with 64 requests in flight, prepares small pictures and asks for one caption of each. No more
than 64 / 0.2 s captions can come; reading, preparing, asking and journalling should cost none.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from captioner.chat_captioner import ChatSettings
from captioner.stage import CaptionStage
from pipeline.samples import Sample
from tests.support import shards

BAR = 0.95
DELAY_SEC = 0.2
IN_FLIGHT = 64
THREADS = 2
BATCH = 32

BODY = json.dumps(
    {
        "choices": [
            {"message": {"content": "a red wall with four marks"}, "finish_reason": "stop"}
        ],
        "usage": {"completion_tokens": 6},
    }
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


def main(arguments: list[str]) -> bool:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", action="store_true", help="be the server")
    options = parser.parse_args(arguments)
    if options.serve:
        asyncio.run(serve())
        return True
    count = 2048 if options.quick else 6144  # whole rounds of IN_FLIGHT
    pictures = [shards.jpeg(i) for i in range(100)]
    command = [sys.executable, "-m", "tests.benchmarks.bench_chat", "--serve"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        url = server.stdout.readline().strip()
        chat = ChatSettings(journal=folder, in_flight=IN_FLIGHT)
        stage = CaptionStage(f"openai:any@{url}", ("short",), BATCH, THREADS, chat=chat)
        stage.setup()
        stage(samples(pictures, BATCH, "warm"))  # imports pandas and the like
        start, cpu = time.perf_counter(), time.process_time()
        table = stage(samples(pictures, count, "timed"))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        stage._loaded.close()
        server.terminate()
    assert table.column("short_status").to_pylist() == ["ok"] * count
    most = IN_FLIGHT / DELAY_SEC
    print(
        f"{count / seconds:.0f} captions/s of {most:.0f} possible,"
        f" {cpu / count * 1e3:.2f} ms of CPU for each"
    )
    ratio = count / seconds / most
    print(f"ratio {ratio:.3f}  bar {BAR}  {'ok' if ratio >= BAR else 'MISSED'}")
    return ratio >= BAR


def samples(pictures: list[bytes], count: int, name: str) -> Iterator[Sample]:
    for i in range(count):
        yield Sample(index=i, uid=f"{name}{i}", key=f"{i:09d}", image=pictures[i % len(pictures)])


async def serve() -> None:
    """Reads requests whole, and answers each after DELAY_SEC; as little else as possible."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length:")[2].split(None, 1)[0])
                await reader.readexactly(size)
                await asyncio.sleep(DELAY_SEC)
                writer.write(ANSWER % (len(BODY), BODY))
                if b"connection: close" in head:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
