"""Who may use the service: keys, the pages of other sites, and where it listens without a key."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import openai
import pytest
from starlette.testclient import TestClient

from mtp_jax.serving.access import (
    AccessError,
    ApiKeys,
    address_of,
    check_origins,
    is_loopback,
    read_keys,
)
from mtp_jax.serving.app import Service, Settings
from tests.commands import run
from tests.test_serving_command import served

URL = "/v1/audio/transcriptions"
KEY, OTHER = "0123456789abcdef", "fedcba9876543210!"
OPEN = (
    "/",
    "/page.js",
    "/live.js",
    "/microphone.js",
    "/page.css",
    "/icon.svg",
    "/health",
    "/health/live",
)
SITE = "https://app.example.org"


@pytest.fixture(scope="module")
def client(model):
    settings = Settings(
        models=("tiny",), warm=(), keys=ApiKeys([KEY, OTHER]), origins=(SITE,), max_bytes=500_000
    )
    with TestClient(Service(model, settings).app()) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_each_key_opens_the_service_and_nothing_else_does(client, files):
    form = {"file": ("a.flac", files[0])}
    for key in (KEY, OTHER):
        assert client.post(URL, files=form, headers=bearer(key)).status_code == 200
        assert client.get("/v1/models", headers={"authorization": f"bearer {key} "}).is_success
    for headers in (
        {},
        bearer(""),
        bearer(KEY[:-1]),
        bearer(f"{KEY}0"),
        bearer(f"{KEY} {OTHER}"),
        bearer(KEY.upper()),
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": b"Bearer \xff\x00"},
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        {"X-Api-Key": KEY},
    ):
        for answer in (
            client.post(URL, files=form, headers=headers),
            client.get("/v1/models", headers=headers),
            client.get("/metrics", headers=headers),
            client.get("/no/such/route", headers=headers),
        ):
            assert answer.status_code == 401
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert "Authorization: Bearer KEY" in error["message"]
            assert KEY not in answer.text
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/no/such/route", headers=bearer(KEY)).status_code == 404


def test_health_and_the_page_need_no_key_and_tell_nothing_of_the_model(client):
    for path in OPEN:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "tiny" not in answer.text
    assert client.get("/health/ready").status_code in (200, 503)
    assert client.get("//v1/models").status_code == 401


def test_what_is_refused_is_counted_and_never_kept(client):
    def counted() -> float:
        lines = client.get("/metrics", headers=bearer(KEY)).text.splitlines()
        found = [line for line in lines if line.startswith('mtp_requests_total{status="401"}')]
        return float(found[0].split()[1]) if found else 0.0

    before = counted()
    large = {"file": ("a.flac", bytes(5_000_000))}  # beyond the limit: not read to its end
    assert client.post(URL, files=large).status_code == 401
    assert counted() == before + 1
    assert client.get("/health").json()["held"] == 0


def test_only_pages_of_named_sites_may_read_answers(client, model):
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-lang",
    }
    first = client.options(URL, headers={"Origin": SITE, **asks})  # a browser sends no key with it
    assert first.status_code == 200
    assert first.headers["access-control-allow-origin"] == SITE
    assert "authorization" in first.headers["access-control-allow-headers"].lower()
    for headers in ({}, bearer(KEY)):  # the page may read why it is refused, too
        answer = client.get("/v1/models", headers={"Origin": SITE, **headers})
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "access-control-allow-credentials" not in answer.headers
    for origin in ("https://evil.example", "null", SITE.upper(), f"{SITE}.evil.example"):
        answer = client.get("/v1/models", headers={"Origin": origin, **bearer(KEY)})
        assert "access-control-allow-origin" not in answer.headers
        assert client.options(URL, headers={"Origin": origin, **asks}).status_code == 400
    for origins, allowed in (((), None), (("*",), "*")):
        app = Service(model, Settings(models=("tiny",), warm=(), origins=origins)).app()
        with TestClient(app) as other:
            answer = other.get("/v1/models", headers={"Origin": "https://any.example"})
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_a_file_of_keys_may_have_remarks_and_several_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the app\n{KEY}\n\n  {OTHER}\r\n{KEY}")
    keys = read_keys(str(file))
    assert all(keys.opened_by(f"Bearer {key}".encode()) for key in (KEY, OTHER))
    assert not keys.opened_by(b"Bearer # of the app")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"secret", "has 6 characters, and can be guessed"),
        (b"the secret of the service", "line 1 of .* is no key"),
        ("schlüssel der größten länge".encode(), "line 1 of .* is no key"),
        (bytes(range(256)), "is no key"),
        (b"0123456789abcdef\n" * 101, "at most 100 lines"),
        (b"#" * 70_000, "is no file of keys"),
    ],
)
def test_a_wrong_file_of_keys_gets_a_sentence_that_quotes_none(tmp_path, content, said):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(AccessError, match=said) as raised:
        read_keys(str(file))
    message = str(raised.value)
    assert "openssl rand -hex 32" in message
    assert "\n" not in message
    assert not content.strip() or content.decode("latin-1").strip() not in message


def test_origins_are_as_browsers_send_them():
    right = ["https://a.example", "http://localhost:3000", "http://[::1]:80800"[:-1]]
    assert check_origins([*right, " https://a.example "]) == tuple(right)
    assert check_origins(["*"]) == ("*",)
    for wrong in (
        *("a.example", "https://a.example/", "https://A.example", "https://a.example:443"),
        *("http://a.example:80", "ftp://a.example", "https://u@a.example", "null", ""),
        *("https://*.example", "https://a.example/x"),
    ):
        with pytest.raises(AccessError, match="no origin: give"):
            check_origins([wrong])
    with pytest.raises(AccessError, match="or \\* alone"):
        check_origins(["*", "https://a.example"])


def test_loopback_is_told_from_what_others_reach():
    for host, own in (
        *(("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True)),
        *(("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("192.0.2.1", False)),
        *(("::ffff:192.0.2.1", False), ("fe80::1", False)),
    ):
        assert is_loopback(address_of(host)[1]) == own, host
    with pytest.raises(AccessError, match="--host=no such host is no address of this machine"):
        address_of("no such host")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host=0.0.0.0"], "--host=0.0.0.0 lets other machines use the service, and no key"),
        (["--host=::"], "--api_key_file=FILE"),
        (["--host=a..b"], "is no address of this machine"),
        (["--api_key_file=nowhere"], "--api_key_file=nowhere cannot be read (No such file"),
        (["--api_key_file=."], "cannot be read (Is a directory)"),
        (["--api_key_file="], "--api_key_file is empty"),
        (["--api_key_file=KEYS", "--without_key"], "contradict each other"),
        (["--cors_origins=localhost"], "--cors_origins holds 'localhost', no origin"),
    ],
)
def test_a_service_that_would_stand_open_is_refused_at_once(tmp_path, flags, said):
    (tmp_path / "keys").write_text(KEY)
    given = [flag.replace("KEYS", str(tmp_path / "keys")) for flag in flags]
    done = run("serve", "--model=x", *given)
    assert done.status == 2, done.err
    assert said in done.err
    assert done.err.count("\n") == 1


def test_the_command_serves_other_machines_those_with_the_key(workdir, files, tmp_path):
    key_file: pathlib.Path = tmp_path / "keys"
    made = subprocess.run(
        [sys.executable, "-c", "import secrets; print(secrets.token_hex(32))"],
        capture_output=True,
        text=True,
    )
    key_file.write_text(made.stdout)
    flags = ["--host=0.0.0.0", f"--api_key_file={key_file}", "--warm="]
    with served(workdir, *flags) as (process, address):
        base = address.replace("0.0.0.0", "127.0.0.1")
        with (
            openai.OpenAI(base_url=f"{base}/v1", api_key="x" * 64, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="the API key is not right"),
        ):
            client.audio.transcriptions.create(file=("a.flac", files[0]), model="tiny")
        key = key_file.read_text().strip()
        with openai.OpenAI(base_url=f"{base}/v1", api_key=key, timeout=300) as client:
            assert client.audio.transcriptions.create(file=("a.flac", files[0]), model="tiny").text
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert key not in process.stderr.read()
