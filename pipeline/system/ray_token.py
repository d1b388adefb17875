"""Private tokens for Ray clusters that this project starts. Standard library only: needed before Ray is imported."""

import secrets


def private_token() -> dict[str, str]:
    """Return environment variables that give a new Ray cluster a token known only to processes that get them.

    Ray then neither reads nor writes the user's `~/.ray/auth_token`.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
