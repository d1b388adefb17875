"""What `ray job submit` will do, told beforehand by its own functions: what it uploads, and to whom it talks.

No cluster is entered and nothing is sent. Ray's rules for the upload are internal functions (`ray_quirks.py`): rules
written again would differ after its next release. Where a Ray keeps them elsewhere the upload is not measured.
"""

import importlib.metadata
import os
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from pipeline.command import InputError
from pipeline.system.ray_quirks import ray_version_at, upload_rules
from pipeline.system.surroundings import LOOPBACK, proxy_of_environment, variables_set, without_proxy

# Of a member of a zip archive, without its name (APPNOTE.TXT 6.3.10, 4.3.7 and 4.3.12), and of the archive's end.
_MEMBER_BYTES, _END_BYTES = 30 + 46, 22
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Upload:
    """The part of a working directory that is uploaded.

    Attributes:
        folder: The working directory, absolute.
        files: Size of each file, by its path in the folder.
        num_bytes: Size of the archive.
        limit_bytes: Largest size that Ray takes.
    """

    folder: Path
    files: dict[str, int]
    num_bytes: int
    limit_bytes: int

    def largest_files(self, count: int) -> list[tuple[str, int]]:
        """Return paths and sizes of the largest files."""
        return Counter(self.files).most_common(count)

    def largest_folders(self, count: int) -> list[tuple[str, int]]:
        """Return names and sizes of the largest folders directly in the working directory."""
        folders: Counter[str] = Counter()
        for path, num_bytes in self.files.items():
            if "/" in path:
                folders[path.partition("/")[0]] += num_bytes
        return folders.most_common(count)


def measure_upload(folder: Path) -> Upload | None:
    """Return what `ray job submit --working-dir FOLDER` would upload; the files are listed, not read.

    None where this Ray does not tell by which rules it uploads.

    Raises:
        InputError: It is not a folder.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError(f"--working-dir {folder} is not a folder; name the checkout")
    rules = upload_rules()
    paths = None if rules is None else rules.paths(folder)
    if rules is None or paths is None:
        return None
    files: dict[str, int] = {}
    num_bytes = _END_BYTES
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            files[name] = path.stat().st_size
            num_bytes += _MEMBER_BYTES + 2 * len(name.encode()) + files[name]
        elif not any(path.iterdir()):  # Ray keeps empty folders
            num_bytes += _MEMBER_BYTES + 2 * len(f"{name}/".encode())
    return Upload(folder, files, num_bytes, rules.limit_bytes)


def job_server_version(address: str) -> str | None:
    """Return the version of the Ray whose job server answers; None where it answers without telling.

    Args:
        address: `http://HOST:PORT`, or `https`.

    Raises:
        InputError: None does, or it does not let this user in.
    """
    from ray.exceptions import AuthenticationError  # here: a command's help needs no Ray
    from ray.job_submission import JobSubmissionClient

    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InputError(
            f"{address} is not the address of a job server; it reads http://HEAD:8265 (of Ray's dashboard)"
        )
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, port), _CONNECT_SECONDS).close()
        with variables_set(without_proxy(os.environ)):
            client = JobSubmissionClient(address)  # asks the server for the version of its interface
            version = ray_version_at(client)
    except AuthenticationError as error:
        raise InputError(
            f"{address} wants a token that this shell does not give (RAY_AUTH_MODE="
            f"{os.environ.get('RAY_AUTH_MODE', '')}); set RAY_AUTH_MODE=token and copy ~/.ray/auth_token from the "
            "cluster's head"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0]
        if isinstance(error, KeyError):
            cause = f"the answer lacks {cause}"
        through = _proxy_to(address)
        raise InputError(
            f"no job server answers at {address} ({cause}); start it with `ray start --head`, or name it: "
            f"--address http://HEAD:8265{through and f', or set no_proxy={url.hostname}, since {through} is set'}"
        ) from error
    return version


def needed_variables(address: str) -> dict[str, str]:
    """Return what `ray job submit` needs in its environment to reach a job server of this machine past a proxy."""
    is_own = urlsplit(address).hostname in LOOPBACK
    return {"no_proxy": without_proxy(os.environ)["no_proxy"]} if is_own and _proxy_to(address) else {}


def _proxy_to(address: str) -> str:
    """Return the name of the variable that names a proxy by which `ray job submit` would talk to a server, or ''."""
    host = urlsplit(address).hostname or ""
    return "" if proxy_bypass(host) else proxy_of_environment(os.environ) or ""


def client_version() -> str:
    """Return the version of the Ray that submits."""
    return importlib.metadata.version("ray")
