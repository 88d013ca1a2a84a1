# SPDX-License-Identifier: Apache-2.0
"""The paths of vLLM that clients need, for every task that it knows. All others steer the engine, or tell of it.

Not among them: /invocations (inference that no key guards), /inference (tokens for other engines), adapters that are
loaded at run time, sleep, collective_rpc, scaling, metrics, documentation.
"""

_TASKS = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/responses/{response_id}/cancel",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/v1/decisions",
    "/v1/embeddings",
    "/v2/embed",
    "/pooling",
    "/classify",
    "/score",
    "/v1/score",
    "/generative_scoring",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/tokenize",
    "/detokenize",
)

_FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
_OF_ANY_TYPE = (
    "/v1/responses/{response_id}/cancel",
    "/v1/decisions",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
)
MEDIA_TYPES = {
    **dict.fromkeys(set(_TASKS).difference(_FORMS, _OF_ANY_TYPE), "application/json"),
    **dict.fromkeys(_FORMS, "multipart/form-data"),
}
"""The one type of body that a path takes: a request with another one is refused, whatever is in it."""

CLIENT_PATHS = (
    *(("POST", path) for path in _TASKS),
    ("GET", "/v1/responses/{response_id}"),
    ("GET", "/v1/realtime"),
)
"""Methods and paths. `{name}` stands for one segment of a path."""
