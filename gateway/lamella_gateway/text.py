"""A model's text side: chat template and tokenizer in, detokenizers out. No torch.

Knows transformers' tokenizer and the tokenizers library behind it; no requests, no sockets.
transformers is imported when a tokenizer is loaded, in a thread, for that takes seconds: the HTTP
port is open long before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lamella_contract.errors import InvalidConfig

from .detokenize import Detokenizer, detokenizers
from .errors import ApiError, invalid
from .openai_requests import Message

_log = logging.getLogger(__name__)


class TextCodec:
    """Text to ids and back. Safe to use from several threads once it is made."""

    def __init__(self, tokenizer: Any, *, eos_token_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # a tokenizer.json may carry settings of its training, which would cut our prompts
            self._backend.no_truncation()
            self._backend.no_padding()
        self.silent_ids = frozenset(_special_ids(tokenizer, self._backend)) | set(eos_token_ids)
        self._new_detokenizer = detokenizers(
            self._backend, skip=self.silent_ids, decode=self._decode
        )

    @classmethod
    def load(cls, path: str, *, eos_token_ids: Iterable[int] = ()) -> TextCodec:
        """Read the tokenizer in folder ``path``; `InvalidConfig` says why there is none."""
        if not Path(path).is_dir():
            raise InvalidConfig(f"tokenizer_path: got {path!r}, want a folder with a tokenizer")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        # whatever a tokenizer's files make transformers raise, the folder is of no use
        except Exception as reason:
            raise InvalidConfig(
                f"tokenizer_path: no tokenizer could be read from {path!r}: {reason}"
            ) from reason
        return cls(tokenizer, eos_token_ids=eos_token_ids)

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self._tokenizer, "chat_template", None))

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's template makes of ``messages``; `ApiError` 400."""
        if not self.has_chat_template:
            raise invalid(
                "messages",
                "This model has no chat template: it completes text and was not made for chats. "
                "Use /v1/completions.",
                code="no_chat_template",
            )
        turns = [
            {"role": m.role, "content": m.content} | ({"name": m.name} if m.name else {})
            for m in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        # templates are programs of the model's makers and refuse chats in their own words
        except Exception as reason:
            raise invalid("messages", f"The model's chat template refuses: {reason}") from reason
        return str(text)

    def chat_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of a chat; the template writes the special tokens itself."""
        return self._encode(self.chat_text(messages), add_special_tokens=False)

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text to be completed, with what the model wants before it (BOS)."""
        return self._encode(text, add_special_tokens=True)

    def detokenizer(self, context: Sequence[int]) -> Detokenizer:
        """A decoder for the ids that follow ``context``."""
        return self._new_detokenizer(context)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            if self._backend is not None:
                encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
                return tuple(encoding.ids)
            return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))
        # a tokenizer without an unknown token cannot read every text
        except Exception as reason:
            raise ApiError(400, f"The prompt cannot be tokenized: {reason}") from reason

    def _decode(self, ids: Sequence[int]) -> str:
        shown = [token_id for token_id in ids if token_id not in self.silent_ids]
        if self._backend is not None:
            return str(self._backend.decode(shown, skip_special_tokens=False))
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))


def _special_ids(tokenizer: Any, backend: Any) -> set[int]:
    """Ids that stand for no text: the tokenizer's special tokens."""
    if backend is None:
        return set(tokenizer.all_special_ids)
    added = backend.get_added_tokens_decoder()
    return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
