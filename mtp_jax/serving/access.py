"""Who may use the service: API keys, the sites whose pages may call it, and where it listens."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
import string
from collections.abc import Sequence
from pathlib import Path

SHORTEST_KEY = 16  # characters; whoever may ask as often as they like guesses shorter ones
_KEYS = 100  # of a file
_BYTES = 64 * 1024  # of a file
_PRINTABLE = frozenset(string.digits + string.ascii_letters + string.punctuation)
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[1-9][0-9]{0,4})?")
_MAKE_ONE = "make one with: openssl rand -hex 32"


class AccessError(ValueError):
    """A key file, an origin or an address that cannot be used."""


class ApiKeys:
    """Keys that open the service. It holds their digests alone.

    Args:
        keys: each of them.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def opened_by(self, authorization: bytes) -> bool:
        """Whether the value of an Authorization header, ``Bearer KEY``, holds one of the keys.

        The time that it takes tells nothing of the keys: digests of equal length are compared, to
        their end and with every key.
        """
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip(b" \t"))
        same = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(same) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: str) -> ApiKeys:
    """The keys of a file, one a line; empty lines and those that begin with # are skipped.

    Raises:
        AccessError: it cannot be read, or one of its lines is no key. No message quotes a line.
    """
    file_flag = f"--api_key_file={path}"
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise AccessError(f"{file_flag} cannot be read ({reason}): {_MAKE_ONE} > FILE") from None
    keys: list[str] = []
    for number, line in enumerate(content[:_BYTES].decode("latin-1").splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not _PRINTABLE.issuperset(key):
            raise AccessError(
                f"line {number} of {file_flag} is no key, which has no spaces and ASCII"
                f" characters only: {_MAKE_ONE}"
            )
        if len(key) < SHORTEST_KEY:
            raise AccessError(
                f"the key in line {number} of {file_flag} has {len(key)} characters, and can be"
                f" guessed: give it {SHORTEST_KEY} or more, or {_MAKE_ONE}"
            )
        keys.append(key)
    if len(content) > _BYTES or len(keys) > _KEYS:
        raise AccessError(
            f"{file_flag} is no file of keys, which has at most {_KEYS} lines: {_MAKE_ONE}"
        )
    if not keys:
        raise AccessError(f"{file_flag} holds no key: {_MAKE_ONE}")
    return ApiKeys(keys)


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """The origins, as browsers send them; ``*`` alone stands for every one.

    Raises:
        AccessError: one of them is none.
    """
    found = tuple(dict.fromkeys(origin.strip() for origin in origins))
    if found == ("*",):
        return found
    for origin in found:
        default = (":80", ":443")[origin.startswith("https")]
        if not _ORIGIN.fullmatch(origin) or origin.endswith(default):
            raise AccessError(
                f"--cors_origins holds {origin!r}, no origin: give scheme, host and port as"
                " browsers send them, in small letters and with no path or usual port, as"
                " https://app.example.org or http://localhost:3000, or * alone for all"
            )
    return found


def address_of(host: str) -> tuple[socket.AddressFamily, str]:
    """The family and the numbers of the address that ``--host`` means.

    Raises:
        AccessError: no address has this name.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AccessError(
            f"--host={host} is no address of this machine ({reason}): choose another"
        ) from None
    return family, str(found[0][4][0])


def is_loopback(address: str) -> bool:
    """Whether only programs of this machine can reach what listens at `address`, in numbers."""
    number = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(number, "ipv4_mapped", None) or number).is_loopback
