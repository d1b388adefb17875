"""A token of one's own for a Ray that this project starts. Standard library only: it is needed before Ray is there."""

import secrets


def private_token() -> dict[str, str]:
    """Return variables by which a new Ray has a token that only those who get the variables know.

    Ray then neither reads nor writes the user's `~/.ray/auth_token`.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
