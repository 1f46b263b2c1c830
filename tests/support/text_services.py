"""What a scripted chat model answers when it is to fuse captions or to upsample prompts."""

import re

from tests.support.chat_server import Asked

TAIL = "on an old wooden table in a quiet room, while rain runs down the window behind"

_TEXTS = re.compile(r"<text_a>(.*)</text_a>\s*<text_b>(.*)</text_b>", re.DOTALL)


def inserted(asked: Asked) -> tuple[str, str]:
    """The original and the synthetic caption of a question."""
    return _TEXTS.search(asked.prompt).groups()


def fused(asked: Asked) -> str:
    """A caption that keeps every word of both."""
    original, synthetic = inserted(asked)
    return f"{synthetic}, known as {original}"


def wish(asked: Asked) -> str:
    """The prompt of a question."""
    return re.findall(r"Wish: (.*)\n", asked.prompt)[-1]


def described(asked: Asked) -> str:
    """A description that keeps every word of the prompt."""
    return f"A picture of {wish(asked)} {TAIL}."
