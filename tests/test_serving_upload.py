"""Bodies of requests: what is cut off leaves no file open."""

from __future__ import annotations

import asyncio

import pytest

from mtp_jax.serving.refusal import Refused
from mtp_jax.serving.upload import Body

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--x--\r\n'
)


def body_of(content: bytes, max_bytes: int = 5_000_000) -> Body:
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive():
        return next(messages)

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    return Body({"type": "http", "headers": headers}, receive, max_bytes, 60.0)


def test_a_form_is_read_to_its_end():
    async def read() -> None:
        form = await body_of(FORM % b"samples").form()
        assert form["model"] == "tiny"
        assert form["file"].file.read() == b"samples"
        await form.close()

    asyncio.run(read())


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_form_that_ends_anywhere_leaves_no_file_open(size, recwarn):
    """Python warns of a file that it has to close itself, and warnings are errors."""
    whole = FORM % bytes(size)

    async def read(at: int) -> None:
        try:
            form = await body_of(whole[:at]).form()
        except Refused as refused:
            assert refused.status == 400
        else:
            await form.close()

    for at in (0, 3, 60, 70, 75, size // 2 + 70, len(whole) - 70, len(whole) - 9):
        asyncio.run(read(at))
