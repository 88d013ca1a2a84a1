# SPDX-License-Identifier: Apache-2.0
"""No known secret is seen, however it is written, cut or joined with others; and little else is masked."""

import base64
import json
import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.fleet.runtimes.output import Output
from vllm_gateway.telemetry.secrets import MASK, Secrets, mask_urls, names_a_secret

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
ODD = 'p@ss/w0rd+"=% ü\\x'


def knowing(*values: str) -> Secrets:
    secrets = Secrets()
    secrets.learn(values)
    return secrets


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "VLLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "PASSWD",
        "apikey",
        "--hf-token",
        "GCP_CREDENTIALS",
    ],
)
def test_names_that_say_so(name: str) -> None:
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "MAX_TOKENS",
        "HF_TOKEN_PATH",
        "HF_HOME",
        "PATH",
        "--tokenizer",
        "--return-tokens-as-token-ids",
        "",
    ],
)
def test_names_that_do_not(name: str) -> None:
    assert not names_a_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token={TOKEN}.", f"token={MASK}."),
        (f"{TOKEN}{TOKEN}", MASK),
        (f"x{TOKEN}y{TOKEN}z", f"x{MASK}y{MASK}z"),
        (f"https://user:{TOKEN}@host/x", f"https://{MASK}@host/x"),
        ("p%40ss%2Fw0rd%2B%22%3D%25%20%C3%BC%5Cx", MASK),
        ("p%40ss%2fw0rd%2b%22%3d%25%20%c3%bc%5cx", MASK),
        ("p%40ss/w0rd%2B%22%3D%25%20%C3%BC%5Cx", MASK),
        ("p%40ss%2Fw0rd%2B%22%3D%25+%C3%BC%5Cx", MASK),
        (r'{"password": "p@ss/w0rd+\"=% \u00fc\\x"}', f'{{"password": "{MASK}"}}'),
        (r"""{'password': 'p@ss/w0rd+"=% ü\\x'}""", f"{{'password': '{MASK}'}}"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_every_form_is_masked(text: str, shown: str) -> None:
    assert knowing(TOKEN, ODD).mask(text) == shown


@pytest.mark.parametrize("value", [TOKEN, ODD, "aws+sec/ret==9"])
def test_every_encoding_is_masked(value: str) -> None:
    secrets = knowing(value)
    data = value.encode()
    slashes = json.dumps(value).replace("/", "\\/")
    assert secrets.mask(slashes) == f'"{MASK}"'
    assert secrets.mask(f"{data.hex()} {data.hex().upper()}") == f"{MASK} {MASK}"
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert secrets.mask(encode(data).decode()) == MASK
        for before in ("u:", "me:", "user:"):
            shown = secrets.mask(encode(f"{before}{value}\n".encode()).decode())
            assert MASK in shown
            assert len(shown.replace(MASK, "")) <= 4 * len(before)


def test_secrets_that_overlap_leave_nothing_of_each_other() -> None:
    secrets = knowing("abcdefgh1", "gh1ijklmn", "abcdefgh1ij")
    assert secrets.mask("-abcdefgh1ijklmn-") == f"-{MASK}-"


def test_short_ones_are_words_and_the_shortest_are_none() -> None:
    secrets = knowing("abc", "word", "true", "None")
    assert secrets.mask("abc word wordy sword true None word") == f"abc {MASK} wordy sword true None {MASK}"


def test_each_line_of_a_long_one_counts() -> None:
    secrets = knowing("-----BEGIN KEY-----\nMIIEvQIBADANBg\n  kqhkiG9w0BAQ\n-----END KEY-----\n")
    assert secrets.mask("  kqhkiG9w0BAQ") == f"  {MASK}"


def test_what_engines_are_given_is_learnt() -> None:
    secrets = Secrets()
    secrets.learn_environment({"HF_TOKEN": TOKEN, "HTTPS_PROXY": "http://me:pr0xy-pass@proxy:1", "HOME": "/home/me"})
    secrets.learn_arguments(
        ["serve", "--hf-token", "first-token", "--api-key=second-key", "--hf-token", "--tokenizer", "auto-x"]
    )
    shown = secrets.mask(f"{TOKEN} pr0xy-pass /home/me first-token second-key --tokenizer auto-x")
    assert shown == f"{MASK} {MASK} /home/me {MASK} {MASK} --tokenizer auto-x"


@pytest.mark.parametrize(
    "argument",
    [
        "--header=Authorization: Bearer made-up-1",
        "Authorization: Basic made-up-1",
        "X-Api-Key: made-up-1",
        '{"timeout": 1000, "api_key":"made-up-1"}',
        '--config={"headers": {"Authorization": "made-up-1"}}',
        "authorization=Bearer made-up-1,x=y",
    ],
)
def test_secrets_within_a_value_are_learnt(argument: str) -> None:
    by_argument, by_environment = Secrets(), Secrets()
    by_argument.learn_arguments(["serve", "--header", argument, "--max-tokens=1000"])
    by_environment.learn_environment({"OTEL_EXPORTER_OTLP_HEADERS": argument})
    for secrets in (by_argument, by_environment):
        assert secrets.mask("got made-up-1 and 1000") == f"got {MASK} and 1000"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer sk-12345", f"Authorization: Bearer {MASK}"),
        ("{'authorization': 'Basic dTpw'}", f"{{'authorization': 'Basic {MASK}'}}"),
        ("the authorization failed", "the authorization failed"),
        ("git clone https://me:secret@host/x.git", f"git clone https://{MASK}@host/x.git"),
        ("redis://:p@ss@host", f"redis://{MASK}@host"),
        ("GET https://cdn/x?X-Amz-Signature=abc&a=b", f"GET https://cdn/x?X-Amz-Signature={MASK}&a=b"),
        ("https://h/x?access_token=abc", f"https://h/x?access_token={MASK}"),
        ("mail me@host, see https://host/a@b and http://host", "mail me@host, see https://host/a@b and http://host"),
    ],
)
def test_credentials_in_urls_and_headers_are_masked_though_nobody_knows_them(text: str, shown: str) -> None:
    assert mask_urls(text) == shown


@given(st.lists(st.integers(0, 3 * len(TOKEN)), max_size=6), st.sampled_from(["", "\x1b[1m", "50%\r"]))
def test_however_the_output_is_cut_on_its_way(cuts: list[int], noise: str) -> None:
    data = f"{noise}begin {TOKEN[:20]}\x1b[0m{TOKEN[20:]}\nend {TOKEN}".encode()
    tail = Output(knowing(TOKEN))
    for start, end in pairwise([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]):
        tail.feed(data[start:end])
    assert tail.lines() == (f"begin {MASK}", f"end {MASK}")


@given(st.integers(0, 5000), st.integers(0, 60))
def test_wherever_a_long_line_is_cut(before: int, masks: int) -> None:
    tail = Output(knowing(TOKEN))
    tail.feed(f"{(TOKEN + '|') * masks}{'.' * before}{TOKEN}{'.' * 5000}\n".encode())
    (line,) = tail.lines()
    assert not set(line.removesuffix("...")) & set(string.ascii_letters)


def test_reading_costs_little_whatever_comes() -> None:
    """Every pattern is linear: a line of the longest kind takes milliseconds, not seconds."""
    secrets = knowing(*(f"secret-number-{n}" for n in range(200)), "a" * 40)
    for text in (
        "a" * 4000,
        "://" * 1300,
        "?token" * 600,
        "secret-number-" * 280,
        "://" + "a" * 4000,
        "authorization:" * 280,
    ):
        secrets.mask(text, is_cut=True)
