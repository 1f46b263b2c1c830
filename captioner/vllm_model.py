"""A vision-language model in this process: vLLM's asynchronous engine behind the chat interface."""

import asyncio
import dataclasses
import difflib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import parse_qsl

from captioner.chat import Answer, Question
from captioner.completions import messages
from pipeline.errors import UserError

OLDEST = (0, 30)
_CLOSE_SEC = 60  # until vLLM's processes are killed; five, its own choice, can be too few
_ENVIRONMENT = {  # where the user has set nothing else
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


class VllmModel:
    """Answers questions with vLLM, many at once, while the next images are being prepared.

    model: a folder or a hub id, then perhaps settings of vLLM's engine by their own names, for example
    `Qwen/Qwen2.5-VL-7B-Instruct?max_model_len=8192&tensor_parallel_size=2`. in_flight: questions
    handed to the engine at once, over all threads; twice `max_num_seqs` keeps it busy.

    Prompts are rendered and defaults of sampling taken from the model's own generation config as
    vLLM's server does it, so both give the same answers. vLLM starts processes: a script that opens
    a model needs the usual `if __name__ == "__main__"`. Raises UserError where vLLM is missing or
    too old, where the model cannot be loaded, and, while answering, where the engine has died.
    """

    def __init__(self, model: str, *, in_flight: int = 64) -> None:
        vllm = _import_vllm()
        path, settings = split_settings(model)
        arguments = vllm.AsyncEngineArgs
        known = {field.name for field in dataclasses.fields(arguments)} - {"model"}
        for name in settings.keys() - known:
            close = difflib.get_close_matches(name, known, n=1) or ["max_model_len"]
            raise UserError(f"vLLM has no setting {name!r}", f"for example {close[0]}=...")
        self.name = f"vllm:{model}"
        self._numbers = itertools.count()
        self._room = asyncio.Semaphore(in_flight)
        self._asking: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        defaults = {"disable_log_stats": True, "limit_mm_per_prompt": {"image": 1, "video": 0}}
        try:
            self._engine = self._run(_start(arguments, {"model": path} | defaults | settings))
        except Exception as error:  # a dozen kinds, from a missing folder to a failed child process
            self._stop_loop()
            raise UserError(
                f"vLLM cannot load {path!r}: {_line(error)}",
                "its own messages above say more; settings go into the name: "
                f"vllm:{path}?max_model_len=4096",
            ) from error
        self._sampling = self._engine.model_config.get_diff_sampling_param()

    def ask(
        self, questions: Sequence[Question], arrived: Callable[[int, Answer], None] | None = None
    ) -> list[Answer]:
        """An answer for every question, in order; thread-safe.

        arrived: called with place and answer as each comes, in the engine's thread; what it raises
        ends the call. A question that the model cannot take (too long, a broken image) fails alone, with a reason.
        Raises UserError where the engine has died.
        """
        return self._run(self._answers(questions, arrived or (lambda place, answer: None)))

    def close(self) -> None:
        """Ends what is in flight, whose callers get an exception, and the engine's processes."""
        if not self._loop.is_closed():
            self._run(self._shut_down())
            self._stop_loop()
            del self._engine

    async def _shut_down(self) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        self._engine.shutdown(timeout=_CLOSE_SEC)

    async def _answers(
        self, questions: Sequence[Question], arrived: Callable[[int, Answer], None]
    ) -> list[Answer]:
        asking = asyncio.current_task()
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)

        async def answer(place: int) -> Answer:
            async with self._room:
                said = await self._answer(questions[place])
            arrived(place, said)
            return said

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(place)) for place in range(len(questions))]
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _answer(self, question: Question) -> Answer:
        try:
            return await self._generate(question)
        except Exception as error:
            if self._engine.errored:
                raise UserError(
                    f"the vLLM engine of {self.name} has died",
                    "its own messages above say why (often memory: lower max_model_len or "
                    "max_num_seqs in the name); then run the same command again",
                ) from error
            return Answer("", "failed", reason=_line(error))

    async def _generate(self, question: Question) -> Answer:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt = await self._render(question)
        if question.image is not None:
            bare = await self._render(dataclasses.replace(question, image=None))
            if len(prompt["prompt_token_ids"]) <= len(bare["prompt_token_ids"]):
                return Answer("", "failed", reason="the image is not in the prompt")
        chosen = {
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "seed": question.seed,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        sampling = SamplingParams.from_optional(**self._sampling | chosen)
        async for said in self._engine.generate(prompt, sampling, str(next(self._numbers))):
            result = said.outputs[0]
        counts = (len(said.prompt_token_ids), len(result.token_ids))
        if result.finish_reason not in ("stop", "length"):
            return Answer("", "failed", f"vLLM ended it: {result.finish_reason}", *counts)
        return Answer(result.text, result.finish_reason, "", *counts)

    async def _render(self, question: Question) -> dict[str, Any]:
        """The prompt as token ids with the image's tensors, prepared in vLLM's own threads."""
        from vllm.renderers import ChatParams
        from vllm.utils.mistral import is_mistral_tokenizer

        renderer = self._engine.renderer
        template = {
            "add_generation_prompt": True,
            "tokenize": is_mistral_tokenizer(renderer.tokenizer),
        }
        _, (prompt,) = await renderer.render_chat_async(
            [messages(question)],
            ChatParams(chat_template_kwargs=template),
            # The template writes the start token itself, where the model has one.
            renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False),
        )
        return prompt

    def _run(self, work: Coroutine) -> Any:
        """What a coroutine returns that runs on the engine's loop; an interrupt here cancels it."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise UserError(f"{self.name} was closed", "open it again") from error
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def split_settings(model: str) -> tuple[str, dict[str, object]]:
    """`<model>?a=1&b=x` -> ('<model>', {'a': 1, 'b': 'x'}); values are JSON where they can be."""
    path, _, query = model.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UserError(
            f"settings {query!r} of {path} are malformed", "write ?name=value&name=value"
        ) from error
    return path, {name: _value(text) for name, text in pairs}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


async def _start(arguments: type, settings: dict[str, object]) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(arguments(**settings))


def _import_vllm() -> Any:
    """vLLM, at least of `OLDEST` and whole; raises UserError."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    remedy = "install it beside this package: pip install 'recaption[vllm]'"
    try:
        import vllm

        version = vllm.__version__
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
            raise UserError(f"vLLM {version} is too old", f"at least 0.30 is needed; {remedy}")
        import vllm.v1.engine.async_llm  # what is loaded on use only, so that it fails here
    except ModuleNotFoundError as error:
        raise UserError(f"vLLM is not installed here: {error}", remedy) from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise UserError(f"vLLM cannot be imported: {_line(error)}", remedy) from error
    return vllm


def _line(error: BaseException) -> str:
    """What an error says, or what lies behind it where it says nothing, on one short line."""
    while not str(error).strip() and error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:300]
