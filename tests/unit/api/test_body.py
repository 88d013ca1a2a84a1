# SPDX-License-Identifier: Apache-2.0
"""What is found in a request's body, and what is said when it is not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.api.body import Wanted, in_utf8, large_with_model, looked_through, with_model
from vllm_gateway.api.body import wanted as wanted_within
from vllm_gateway.api.errors import ApiError
from vllm_gateway.bodies.limits import BodyLimits
from vllm_gateway.bodies.turns import Turns

JSON = "application/json"
FORM = "multipart/form-data; boundary=cut-here"


def wanted(body: bytes, content_type: str) -> Wanted:
    return wanted_within(body, content_type, BodyLimits())


def form(*parts: tuple[str, bytes], boundary: str = "cut-here") -> bytes:
    lines = [
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value for head, value in parts
    ]
    return b"\r\n".join([*lines, f"--{boundary}--\r\n".encode()])


def test_only_model_and_stream_are_looked_at() -> None:
    body = b'{"messages": [{"role": "user", "content": "\xc3\xa9"}], "model": "m", "stream": true, "seed": 1e400}'
    assert wanted(body, JSON) == Wanted("m", True)
    assert wanted(b'{"model": "m"}', "") == Wanted("m", False)
    assert wanted(b'{"model": "m", "stream": null}', JSON).model == "m"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"m"',
        b'{"model": 3}',
        b'{"model": "m", "stream": "perhaps"}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"messages": ' + b"[" * 100_000,
    ],
    ids=lambda body: str(body[:30]),
)
def test_what_is_not_the_json_expected_is_the_clients_error(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        wanted(body, JSON)
    assert (caught.value.code, caught.value.status) == ("bad_request", 400)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b'{"model": "m", "stream": "maybe"}', "stream", "expected: 'stream' must be true or false"),
        (b'{"model": "m", "stream": []}', "stream", "expected: 'stream' must be "),
        (b'{"model": 3}', "model", "expected: 'model' must be text or null"),
        (b"[1]", None, "expected: it must be a mapping"),
    ],
)
def test_the_field_that_is_wrong_is_named_in_plain_words(body: bytes, param: str | None, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted(body, JSON)
    assert caught.value.param == param
    assert says in caught.value.message
    assert "`" not in caught.value.message


@pytest.mark.parametrize("stream", ["1", "1.0", '"1"', '"true"', '"True"', '"YES"', '"on"', '"t"', '"y"', "true"])
def test_engines_take_more_than_true_for_true(stream: str) -> None:
    assert wanted(b'{"model": "m", "stream": %b}' % stream.encode(), JSON) == Wanted("m", True)


@pytest.mark.parametrize(("stream", "means"), [(b"1", True), (b"On", True), (b"0", False), (b"", False)])
def test_a_form_says_it_in_text(stream: bytes, means: bool) -> None:
    assert wanted(form(('name="model"', b"m"), ('name="stream"', stream)), FORM) == Wanted("m", means)


@pytest.mark.parametrize("stream", ["0", "0.0", '"0"', '"False"', '"no"', '"OFF"', '"f"', '"n"', "false", "null"])
def test_and_more_than_false_for_false(stream: str) -> None:
    assert wanted(b'{"model": "m", "stream": %b}' % stream.encode(), JSON) == Wanted("m", False)


@pytest.mark.parametrize("stream", ["2", "-1", "0.5", '""', '" true"', '"1.0"', "[]", "{}", "1e999", "9" * 400])
def test_but_not_all(stream: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted(b'{"model": "m", "stream": %b}' % stream.encode(), JSON)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_json_is_read_in_every_encoding_in_which_engines_take_it(encoding: str) -> None:
    text = ' {"model": "mé"}'
    for body in (text.encode(encoding), bytearray(text, encoding)):
        length, read = len(body), bytes(in_utf8(body))
        assert read.lstrip() == text.encode().lstrip()
        assert len(body) == length, "it is given back as long as it came"
    assert in_utf8(b"") == b""
    assert in_utf8(b"{\x00\x00\xd8") == b"{\x00\x00\xd8", "no text at all"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_large_body_in_another_encoding_is_told_the_truth(encoding: str) -> None:
    width = 4 if "32" in encoding else 2
    text = '{"model": "m", "x": "%s"}'
    largest = text % ("ü" * ((2 << 20) // width - len(text)))
    assert in_utf8(bytearray(largest, encoding)) == largest.encode()
    dense = text % (":" * 200_000)
    assert in_utf8(bytearray(dense, encoding)) == dense.encode(), "whatever is in it"
    with pytest.raises(ApiError, match="UTF-16 or UTF-32 is taken up to 2 MiB") as caught:
        in_utf8(bytearray(text % ("x" * (2 << 20)), encoding))
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("body", [b"{}", b'{"model": ""}', b'{"model": null}'])
def test_a_missing_model_is_named(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        wanted(body, JSON)
    assert (caught.value.code, caught.value.param) == ("model_missing", "model")


@given(st.binary(max_size=200).filter(lambda file: b"--cut-here" not in file))
def test_a_form_is_read_whatever_its_file_holds(file: bytes) -> None:
    body = form(
        ('name="file"; filename="a.wav"', b'\r\n\r\nname="model"\r\n' + file),
        ('name="model"', b"whisper"),
        ('name="stream"', b"True"),
    )
    assert wanted(body, FORM) == Wanted("whisper", True)


def test_a_file_that_is_called_model_is_not_the_model() -> None:
    body = form(('name="model"; filename="m"', b"file"))
    with pytest.raises(ApiError) as caught:
        wanted(body, FORM)
    assert caught.value.code == "model_missing"


@pytest.mark.parametrize(
    "head",
    [
        "name=modelfoo",
        'name="modelfoo"',
        'xname="model"',
        'name="x"\r\nX-Note: form-data; name="model"',
        "name=\"model\"; filename*=utf-8''m",
        'name="a\\"; name=model; \\""',
    ],
)
def test_a_field_by_another_name_is_not_the_model(head: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted(form((head, b"m")), FORM)
    assert caught.value.code == "model_missing"


@pytest.mark.parametrize(
    "head", ["name=model", "NAME=model", 'a=b; name="model"', 'name="model"\r\nContent-Type: text']
)
def test_a_fields_name_may_be_written_in_several_ways(head: str) -> None:
    assert wanted(form((head, b"m")), FORM).model == "m"


def test_a_form_is_known_by_its_type_in_any_case_and_a_quoted_boundary() -> None:
    body = form(('name="model"', b"m"), boundary="cut here")
    assert wanted(body, 'Multipart/Form-Data; boundary="cut here"').model == "m"


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", FORM, f"{FORM}\udcff"])
def test_a_form_without_its_boundary_is_the_clients_error(kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        wanted(b'--other\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--other--', kind)
    assert caught.value.status == 400


def test_the_models_own_name_takes_the_place_of_an_alias_and_all_else_stays() -> None:
    body = b'{"seed": 1e400, "model": "alias", "messages": [{"content": "\\u00e9 \xc3\xa9", "model": "alias"}]}'
    named = b'{"seed":1e400,"model":"org/m","messages":[{"content": "\\u00e9 \xc3\xa9", "model": "alias"}]}'
    assert with_model(body, JSON, "org/m", BodyLimits()) == named


@given(st.binary(max_size=200).filter(lambda file: b"--cut-here" not in file))
def test_the_models_own_name_takes_the_place_of_an_alias_in_a_form(file: bytes) -> None:
    def body(model: bytes) -> bytes:
        return form(('name="file"; filename="a.wav"', b'name="model"' + file), ('name="model"', model))

    assert with_model(body(b"alias"), FORM, "whisper", BodyLimits()) == body(b"whisper")


async def test_numbers_that_only_python_knows_reach_a_model_by_an_alias() -> None:
    body = b'{"model": "alias", "logit_bias": {"7": -Infinity}, "temperature": NaN}'
    large = await looked_through(body, JSON, BodyLimits(), Turns())
    payload = large_with_model(body, large, "m")
    assert isinstance(payload, tuple)
    assert b"".join(payload) == body.replace(b"alias", b"m")
