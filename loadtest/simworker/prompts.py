"""From messages to a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from loadtest.simworker.errors import Refused
from loadtest.simworker.tokenizer import (
    ASSISTANT,
    FIRST_BYTES,
    IMAGE,
    SYSTEM,
    TOOL,
    USER,
    VOCABULARY,
    Tokenizer,
    chat_prompt,
)

if TYPE_CHECKING:
    from loadtest.simworker.bodies import Message, Part

IMAGE_TOKENS = 64
_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}


def prompt_of(
    messages: list[Message], tokenizer: Tokenizer, *, generate: bool, continue_final: bool
) -> list[int]:
    """The prompt's token ids by the chat template."""
    if generate and continue_final:
        raise Refused(
            400,
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    if not messages:
        raise Refused(400, "messages must not be empty (parameter=messages, value=[])", param="messages")
    turns = [(_role(message), _content(message, tokenizer)) for message in messages]
    return chat_prompt(turns, generate=generate, continue_final=continue_final)


def read_prompts(
    given: str | list[int | str | list[int]] | None, tokenizer: Tokenizer, param: str
) -> list[list[int]]:
    """One prompt or many, as text or as token ids."""
    parts = [given] if isinstance(given, str) else given or []
    ids = [token for token in parts if isinstance(token, int)]
    if ids and len(ids) < len(parts):
        raise Refused(400, f"{param} mixes token ids with other things", param=param)
    prompts = [tokenizer.encode(p) if isinstance(p, str) else p for p in parts if not isinstance(p, int)]
    if ids:
        prompts = [ids]
    if not prompts or not all(prompts):
        raise Refused(400, "The decoder prompt cannot be empty", param=param)
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= VOCABULARY:
            raise Refused(400, f"Token id {max(prompt)} is out of vocabulary", param=param)
    return prompts


def text_of(message: Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.text or "" for part in message.content)
    return message.content or ""


def _role(message: Message) -> int:
    role = _ROLES.get(message.role)
    if role is None:
        raise Refused(400, f"Unexpected message role: {message.role}", param="messages")
    return role


def _content(message: Message, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = []
    if isinstance(message.content, list):
        for part in message.content:
            ids += _part(part, tokenizer)
    elif message.content:
        ids = tokenizer.encode(message.content)
    if message.tool_calls:
        ids += tokenizer.encode(msgspec.json.encode(message.tool_calls).decode())
    return ids


def _part(part: Part, tokenizer: Tokenizer) -> list[int]:
    if part.text is not None:
        return tokenizer.encode(part.text)
    media = part.image_url or part.input_audio or part.video_url
    if media is None:
        raise Refused(400, f"Unknown part type: {part.type}", param="messages")
    # As many tokens as a small picture has; the first stands for what is in it, so that another one is another prompt.
    content = FIRST_BYTES + crc32(msgspec.json.encode(media)) % 2**24
    return [IMAGE, content, *[IMAGE] * (IMAGE_TOKENS - 2)]
