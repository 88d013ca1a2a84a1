# SPDX-License-Identifier: Apache-2.0
"""A toy tokenizer and a toy language model: text to token ids and back, and the one next token of any sequence.

The next token depends on the ids before it and on nothing else, as with greedy decoding. So a sequence that was cut
can be continued from its ids on any instance and goes on with exactly the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

USER, ASSISTANT, SYSTEM, TOOL, END = 256, 257, 258, 259, 260
"""Ids of the chat template's marks; ids below are single bytes."""

_FIRST_WORD = 300
_FIRST_PAIR = 1000
"""From here on, two bytes a token: what is no known word costs about two characters a token."""

_ROLES = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "developer": SYSTEM, "tool": TOOL}

_WORD_LIST = """
    the a of and to in it is that was for on with as at by from they we say her she or an will my one all would there
    their what so up out if about who get which go when make can like time just him know take people into year your good
    some could them see other than then now look only come over think also back after use two how our work first well
    way even new want because any these give day most us river stone light cloud garden window bridge paper train letter
    morning evening winter summer forest island harbour market kitchen table music story answer question number machine
    model memory server engine request token signal circle colour shadow water fire wind rain snow small large quiet
    bright slow quick early late open near far green blue grey warm cold simple clear gentle steady careful walks runs
    turns waits listens carries builds finds keeps holds follows reads writes counts moves returns
"""
_WORDS = _WORD_LIST.split()

_IDS = {word: _FIRST_WORD + 2 * place for place, word in enumerate(_WORDS)}
_IDS |= {" " + word: identity + 1 for word, identity in list(_IDS.items())}
_TEXTS = {identity: text.encode() for text, identity in _IDS.items()}
_PIECES = re.compile(r" ?[A-Za-z]+| ?[0-9]+|.", re.DOTALL)

_MASK = (1 << 64) - 1
_MULTIPLIER = 6364136223846793005
_PUNCTUATION = (ord(","), ord("."))

SHORTEST_ANSWER, LONGEST_ANSWER = 16, 64
"""In tokens, where the request sets no limit and the prompt is a chat."""


def encode(text: str) -> list[int]:
    ids: list[int] = []
    for piece in _PIECES.findall(text):
        known = _IDS.get(piece)
        if known is not None:
            ids.append(known)
            continue
        data = piece.encode("utf-8", "replace")
        ids += [_FIRST_PAIR + data[at] * 256 + data[at + 1] for at in range(0, len(data) - 1, 2)]
        if len(data) % 2:
            ids.append(data[-1])
    return ids


def token_bytes(identity: int) -> bytes:
    if identity < 256:
        return bytes([identity])
    if identity >= _FIRST_PAIR:
        return bytes(divmod((identity - _FIRST_PAIR) % 65536, 256))
    return _TEXTS.get(identity, b"")


def decode(ids: Iterable[int]) -> str:
    return b"".join(token_bytes(identity) for identity in ids).decode("utf-8", "replace")


def encode_chat(messages: Sequence[tuple[str, str]], *, generation_prompt: bool, continue_final: bool) -> list[int]:
    """The chat template: a mark for the role, the text, an end mark; then the mark at which the answer starts."""
    ids: list[int] = []
    for role, text in messages:
        ids += [_ROLES.get(role, USER), *encode(text), END]
    if continue_final and ids:
        ids.pop()
    elif generation_prompt:
        ids.append(ASSISTANT)
    return ids


class Continuation:
    """What follows a prompt, token by token; `None` where the model would stop by itself."""

    __slots__ = ("_answered", "_last", "_state", "_target")

    def __init__(self, prompt: Sequence[int]) -> None:
        self._state = 1
        self._last = -1
        self._answered: int | None = None
        self._target = 0
        for identity in prompt:
            self._accept(identity)

    def next(self) -> int | None:
        """The next token of the sequence, or None for its end. Call again to go on beyond the end."""
        if self._at_end():
            return None
        return self.next_ignoring_end()

    def next_ignoring_end(self) -> int:
        draw = self._state >> 24
        if self._last == ASSISTANT:
            chosen = _FIRST_WORD + 2 * (draw % len(_WORDS))
        elif self._last >= 256 and draw % 11 == 0:
            chosen = _PUNCTUATION[draw // 11 % 2]
        else:
            chosen = _FIRST_WORD + 2 * (draw % len(_WORDS)) + 1
        self._accept(chosen)
        return chosen

    def _accept(self, identity: int) -> None:
        self._state = ((self._state ^ identity) * _MULTIPLIER + 1442695040888963407) & _MASK
        self._last = identity
        if identity == ASSISTANT:
            self._answered = 0
            self._target = SHORTEST_ANSWER + (self._state >> 32) % (LONGEST_ANSWER - SHORTEST_ANSWER + 1)
        elif self._answered is not None:
            self._answered += 1

    def _at_end(self) -> bool:
        if self._answered is not None:
            return self._answered >= self._target
        return (self._state >> 40) % 32 == 0
