"""The HTTP client of the teacher `openai`: answers have an end, and each belongs to its question.

A connection is used once. A server or proxy that sends a response twice would otherwise answer the
next question on that connection with the answer to the last one, and a label would stand at the
wrong row without anybody's notice. The new connection costs milliseconds beside seconds of
generation.
"""

import time
from typing import Any

import openai

MOST_BYTES = 16 << 20  # of one answer, unpacked; the longest real ones have some hundred kB
# They describe the bytes that were sent, not those that were read from them.
_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")


class BoundedClient(openai.DefaultHttpxClient):
    """A client whose responses end within `timeout_s` seconds after their head, or fail.

    Without it a time-out counts from byte to byte, and a server that drips holds a call for ever.
    """

    def __init__(self, timeout_s: float) -> None:
        # The client's own HTTP library, whichever openai brings, is reached through its names.
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)
        super().__init__(limits=limits(max_connections=1000, max_keepalive_connections=0))
        self._timeout_s = timeout_s

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """As the library's own, with the whole body read here unless it is asked for in parts.

        Raises:
            ValueError: too long or too late; openai's client makes a connection error of it.
        """
        response = super().send(request, stream=True, **options)
        if stream:
            return response
        try:
            body = self._whole(response)
        finally:
            response.close()
        headers = [item for item in response.headers.multi_items() if item[0] not in _OF_THE_WIRE]
        return type(response)(response.status_code, headers=headers, content=body, request=request)

    def _whole(self, response: Any) -> bytes:
        body, deadline = bytearray(), time.monotonic() + self._timeout_s
        for piece in response.iter_bytes():
            body += piece
            if len(body) > MOST_BYTES:
                raise ValueError(f"the answer has more than {MOST_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise ValueError(f"the answer did not end within {self._timeout_s:g} s")
        return bytes(body)
