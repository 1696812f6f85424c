"""How a client shows who it is, and knows the teacher: TLS, and the team's token."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import grpc

from preceptor.authorities import authorities_of, system_authorities
from preceptor.hosts import host_of, is_loopback
from student_client.errors import AccessError

if TYPE_CHECKING:
    from pathlib import Path

    from student_client.options import ClientOptions, TlsOptions

__all__ = ["TOKEN_VARIABLE", "credentials_of", "denied", "has_token_variable", "metadata_of"]

TOKEN_VARIABLE = "PRECEPTOR_TOKEN"  # noqa: S105 - its name

_TOKEN = re.compile(rb"[a-z0-9][a-z0-9_-]{0,62}\.[A-Za-z0-9_-]{16,256}")


def credentials_of(options: TlsOptions) -> grpc.ChannelCredentials:
    """Reads what a channel needs to know the teacher and to be known by it.

    Raises:
        AccessError: a file can't be read, or holds no authority.
    """
    try:
        authorities = system_authorities() if options.ca_file is None else authorities_of(options.ca_file)
        key = None if options.key_file is None else options.key_file.read_bytes()
        chain = None if options.certificate_file is None else options.certificate_file.read_bytes()
    except OSError as error:
        raise AccessError(f"options.tls: {error.filename} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise AccessError(f"options.tls.ca_file: {error}") from None
    return grpc.ssl_channel_credentials(authorities, key, chain)


def metadata_of(options: ClientOptions, target: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call: the team's token, if there is one.

    Raises:
        AccessError: its file can't be read, or others on the way would read it.
    """
    token = _token_of(options.token_file)
    if not token:
        return ()
    if options.tls is None and not options.insecure and not is_loopback(host_of(target)):
        raise AccessError(
            f"token: not shown to {target} in the clear; expected preceptors://, or "
            "options.insecure (--insecure)"
        )
    return (("authorization", f"Bearer {token}"),)


def _token_of(path: Path | None) -> str:
    """Returns the token, empty if there is none; what is wrong with it is told without it."""
    try:
        content = os.environ.get(TOKEN_VARIABLE, "").encode() if path is None else path.read_bytes()
    except OSError as error:
        raise AccessError(f"token_file: {error.filename} can't be read: {error.strerror}") from None
    content = content.strip()
    if path is None and not content:
        return ""
    if _TOKEN.fullmatch(content) is None:
        raise AccessError(f"{path or TOKEN_VARIABLE}: got something that is no token, expected NAME.SECRET")
    return content.decode("ascii")


def has_token_variable() -> bool:
    """Whether this process has a token in its environment."""
    return bool(os.environ.get(TOKEN_VARIABLE, "").strip())


def denied(cause: str, options: ClientOptions) -> AccessError:
    """Returns the error of a student that a teacher does not let in, with what helps, if it is known.

    Args:
        cause: what the teacher said.
        options: with which it was talked to.
    """
    if options.token_file is None and not has_token_variable():
        return AccessError(
            f"{cause}; name a token_file (options.token_file, --token-file), or set {TOKEN_VARIABLE}"
        )
    if "not known" in cause:
        return AccessError(f"{cause}; ask whoever runs the teacher for another one")
    return AccessError(cause)
