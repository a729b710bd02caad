"""The body of a prediction request: how it is read, checked, and refused in one sentence."""

from typing import Annotated, Any, ClassVar

from fastapi import Request
from fastapi.exceptions import HTTPException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pipestill.data.convert_chat import turns_of
from pipestill.data.raw import REASONS, RowProblem
from pipestill.models.chat import Conversation
from pipestill.serving.settings import Settings

TEXT, CHAT = "(text)", "(chat)"  # kinds of instances, in the places of validation errors


def _as_object(value: Any) -> Any:
    return {"input_text": value} if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    """Takes 64.0 as 64, because numbers that come through protobuf are floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_too_many(value: Any, info: ValidationInfo) -> Any:
    """Looks at the length first, so that a body full of instances costs nothing more."""
    limit = (info.context or {}).get("max_instances")
    if isinstance(value, list) and limit and len(value) > limit:
        raise ValueError(f"{len(value):,} given, at most {limit:,} are allowed")
    return value


def _not_blank(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be blank")
    return value


class Instance(BaseModel):
    """One input."""

    model_config = ConfigDict(strict=True)
    input_text: Annotated[str, BeforeValidator(_not_blank)]
    consent: bool = False  # to be kept in the request log, where the server has one
    field: ClassVar[str] = "input_text"

    def text(self) -> str:
        return self.input_text


class Chat(BaseModel):
    """One conversation that the user speaks last in, as rows of chats are written for training."""

    model_config = ConfigDict(strict=True)
    messages: list[Any]
    context: str = ""
    consent: bool = False
    field: ClassVar[str] = "messages"

    @model_validator(mode="before")
    @classmethod
    def _either(cls, value: Any) -> Any:
        if "input_text" in value:
            raise ValueError("input_text and messages are both given, one is allowed")
        return value

    @model_validator(mode="after")
    def _in_turns(self) -> "Chat":
        try:
            _, turns = turns_of({"messages": self.messages, "context": self.context})
        except RowProblem as problem:
            raise ValueError(f"{problem.field} {REASONS[problem.reason]}") from problem
        if turns[-1][0] != "user":
            raise ValueError("the last of messages must be the user's")
        return self

    def text(self) -> Conversation:
        context, turns = turns_of({"messages": self.messages, "context": self.context})
        system = [("system", context)] if context else []
        told = [{"role": role, "content": content} for role, content in [*system, *turns]]
        return Conversation(turns[-1][1], told)


def _kind(value: Any) -> str:
    return CHAT if isinstance(value, dict) and "messages" in value else TEXT


class Parameters(BaseModel):
    """What holds for all instances of a request."""

    model_config = ConfigDict(strict=True, extra="forbid")
    max_output_tokens: Annotated[int, BeforeValidator(_whole), Field(ge=1, le=8192)] | None = None
    explain: bool = False
    stream: bool | None = None  # None: as the header Accept says


class PredictionRequest(BaseModel):
    """The body of a prediction request; other keys at the top are left alone."""

    model_config = ConfigDict(strict=True)
    instances: Annotated[
        list[
            Annotated[
                Annotated[Instance, BeforeValidator(_as_object), Tag(TEXT)]
                | Annotated[Chat, Tag(CHAT)],
                Discriminator(_kind),
            ]
        ],
        Field(min_length=1),
        FailFast(),
        BeforeValidator(_not_too_many),
    ]
    parameters: Parameters | None = None


async def read_body(request: Request, limit: int) -> bytes:
    """The body, never more of it than `limit` bytes.

    Raises:
        HTTPException: 413.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise HTTPException(413, f"the body is larger than {limit:,} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"the body is larger than {limit:,} bytes")
    return bytes(body)


def parse(body: bytes, settings: Settings) -> PredictionRequest:
    """The request in `body`.

    Raises:
        HTTPException: 400 that names the first wrong field.
    """
    context = {"max_instances": settings.max_instances}
    try:
        return PredictionRequest.model_validate_json(body, context=context)
    except ValidationError as error:
        raise HTTPException(400, _sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    """The first error, with its place: ``instances[3].input_text: Field required``."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in first["loc"]
        if part not in (TEXT, CHAT)
    ).lstrip(".")
    return f"{path or 'body'}: {first['msg'].removeprefix('Value error, ')}"
