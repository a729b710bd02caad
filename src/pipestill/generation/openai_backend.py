"""The teacher `openai`: any server that speaks OpenAI's protocol (vLLM, Gemini, Model Garden, ...).

The few-shot prefix stands first in every prompt and never changes, so a server's own prefix cache
applies. Time-outs, lost connections, unreadable answers and the statuses 408, 409, 429 and 5xx are
tried again, waiting exponentially longer or as long as the server says; other refusals are not.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

import openai

from pipestill.config import TeacherConfig
from pipestill.errors import UserError, WorkError
from pipestill.generation.bounded_http import BoundedClient
from pipestill.generation.teacher import Batch, Completion, Decoding, Failure, Request, clean

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
LONGEST_RETRY_AFTER_S = 300.0
# So many calls in a row that failed after all their attempts mean that the server is gone.
GIVE_UP_AFTER = 8
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_RETRIED = {408, 409, 429}


class OpenAITeacher:
    """A server. Safe against rate limits; `concurrency` calls are in flight at a time."""

    def __init__(self, config: TeacherConfig, decoding: Decoding, *, chat: bool = True) -> None:
        self._config, self._decoding, self._chat = config, decoding, chat
        # Our own attempts replace the client's, because they also cover unreadable answers.
        self._client = openai.OpenAI(
            api_key=api_key(config),
            base_url=config.base_url or None,
            timeout=config.timeout_s,
            max_retries=0,
            http_client=BoundedClient(config.timeout_s),
        )
        self._tokens_per_byte = 1.0
        self._counted = False

    @property
    def fingerprint(self) -> str:
        kind = "chat" if self._chat else "completions"
        return f"openai:{kind}:{self._client.base_url}:{self._config.model_reference}"

    def subject(self, request: Request) -> str:
        return request.prefix + request.query

    def most_prompt_tokens(self, request: Request) -> int:
        """A token is at least a byte; once answers have come, the worst ratio seen and a tenth."""
        size = len((request.prefix + request.query).encode("utf-8"))
        return int(size * self._tokens_per_byte) + 16

    def answer(self, requests: Iterable[Request]) -> Iterator[Batch]:
        limit = max(self._config.concurrency, 1)
        todo, lost = iter(requests), 0
        fatal: BaseException | None = None
        pending: dict[Future[Completion | Failure], Request] = {}
        pool = ThreadPoolExecutor(limit)
        try:
            while True:
                # After a fatal error the calls in flight are still brought home: they are paid for.
                while not fatal and len(pending) < limit and (request := next(todo, None)):
                    pending[pool.submit(self._call, request)] = request
                if not pending:
                    break
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                ended = [(pending.pop(item), item) for item in done]
                fatal = next((e for _, item in ended if (e := item.exception())), fatal)
                batch = [
                    (request, item.result()) for request, item in ended if not item.exception()
                ]
                self._learn(batch)
                yield batch
                answered = any(isinstance(result, Completion) for _, result in batch)
                lost = 0 if answered else lost + sum(is_lost(result) for _, result in batch)
                if lost >= GIVE_UP_AFTER and not fatal:
                    fatal = _gone(self._client.base_url, batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if fatal:
            raise fatal

    def _call(self, request: Request) -> Completion | Failure:
        reason = ""
        attempts = max(self._config.max_retries, 0) + 1
        for attempt in range(attempts):
            began = time.perf_counter()
            try:
                return self._once(request, began)
            except openai.APIStatusError as error:
                status = error.status_code
                reason = self._short(f"HTTP {status}: {error.message}")
                if status in (401, 403, 404):
                    raise _refused(self._config, reason) from error
                if status not in _RETRIED and status < 500:
                    return Failure(reason=reason)
                pause = wait_seconds(attempt, error.response.headers.get("retry-after"))
            except (openai.OpenAIError, _Unreadable, ValueError, RecursionError) as error:
                reason = self._short(str(error)) or type(error).__name__
                pause = wait_seconds(attempt, None)
            if attempt + 1 < attempts:
                time.sleep(pause)
        return Failure(reason=f"{_LOST} {attempts} attempts; the last one: {reason}")

    def _once(self, request: Request, began: float) -> Completion:
        text, finish, answer = self._ask(request.prefix + request.query)
        usage = getattr(answer, "usage", None)
        prompt: Any = getattr(usage, "prompt_tokens", None)
        output: Any = getattr(usage, "completion_tokens", None)
        details = getattr(usage, "prompt_tokens_details", None)
        counted = isinstance(prompt, int) and isinstance(output, int)
        return Completion(
            text=clean(text),
            prompt_tokens=int(prompt) if counted else _guess(request.prefix + request.query),
            output_tokens=int(output) if counted else _guess(text),
            cached_prompt_tokens=getattr(details, "cached_tokens", None) or 0,
            finish_reason="length" if finish == "length" else "stop",
            latency_ms=(time.perf_counter() - began) * 1000,
            estimated=not counted,
        )

    def _ask(self, prompt: str) -> tuple[str, str, Any]:
        """Text, finish reason and the whole answer."""
        shared: dict[str, Any] = {
            "model": self._config.model_reference,
            "max_tokens": self._decoding.max_new_tokens,
            "temperature": self._decoding.temperature,
        }
        if self._decoding.stop:
            shared["stop"] = list(self._decoding.stop)
        if self._chat:
            answer: Any = self._client.chat.completions.create(
                messages=[{"role": "user", "content": prompt}], **shared
            )
        else:
            answer = self._client.completions.create(prompt=prompt, **shared)
        try:
            choice = answer.choices[0]
            text = choice.message.content if self._chat else choice.text
            if text is not None and not isinstance(text, str):
                raise TypeError(type(text).__name__)
        except (AttributeError, IndexError, TypeError) as error:
            raise _Unreadable(f"the answer has no text ({repr(answer)[:100]})") from error
        return text or "", str(choice.finish_reason), answer

    def _short(self, text: str) -> str:
        """One line of a server's message, without the key, should it repeat it."""
        key = self._client.api_key
        hidden = text.replace(key, "***") if len(key) >= 8 else text
        return " ".join(hidden.split())[:200]

    def _learn(self, batch: Batch) -> None:
        """Keeps the worst tokens-per-byte ratio, for the budget's upper bounds."""
        for request, result in batch:
            if isinstance(result, Completion) and not result.estimated:
                size = len((request.prefix + request.query).encode("utf-8"))
                seen = 1.1 * result.prompt_tokens / max(size, 1)
                self._tokens_per_byte = max(self._tokens_per_byte, seen) if self._counted else seen
                self._counted = True


_LOST = "no answer after"


class _Unreadable(Exception):
    """The server answered with something else than a completion."""


def is_lost(result: Completion | Failure) -> bool:
    """Whether a call was given up after all its attempts."""
    return isinstance(result, Failure) and result.reason.startswith(_LOST)


def wait_seconds(
    attempt: int, retry_after: str | None, draw: Callable[[], float] = random.random
) -> float:
    """Seconds until the next attempt: what the server asked, else 0.5 s doubled, with jitter."""
    if retry_after and re.fullmatch(r"\d+(\.\d+)?", retry_after.strip()):
        return min(float(retry_after), LONGEST_RETRY_AFTER_S)
    return float(min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * (0.5 + draw() / 2))


def api_key(config: TeacherConfig) -> str:
    """The key from the variable that `api_key_env` names; a local server needs none.

    Raises:
        UserError: ``API_KEY_NAME`` (the value itself is not repeated: it may be a key by mistake)
            or ``API_KEY_MISSING``.
    """
    name = config.api_key_env
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise UserError(
            "API_KEY_NAME",
            "teacher_api_key_env: found something that is no name of an environment variable, "
            "allowed: capitals, digits and _, such as OPENAI_API_KEY",
            "put the key into a variable and give the variable's name; never the key itself",
        )
    key = os.environ.get(name, "")
    if key:
        return key
    if config.base_url and urlsplit(config.base_url).hostname in LOOPBACK:
        return "none"
    raise UserError(
        "API_KEY_MISSING",
        f"teacher_api_key_env: the environment variable {name} is not set",
        f"export {name}=..., or give the teacher_base_url of a server on this machine",
    )


def _refused(config: TeacherConfig, reason: str) -> UserError:
    return UserError(
        "TEACHER_REFUSED",
        f"the server refused model {config.model_reference!r}: {reason}",
        f"check teacher_model_reference, teacher_base_url and the key in {config.api_key_env}",
    )


def _gone(address: Any, batch: Batch) -> WorkError:
    reasons = [result.reason for _, result in batch if isinstance(result, Failure)]
    return WorkError(
        "TEACHER_UNREACHABLE",
        f"{address}: {GIVE_UP_AFTER} calls in a row got no answer; {reasons[-1]}",
        "check the server and run again: finished calls are in the journal",
    )


def _guess(text: str) -> int:
    """About four characters a token, where the server does not count."""
    return max(1, len(text) // 4) if text else 0
