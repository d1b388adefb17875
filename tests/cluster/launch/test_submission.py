"""What `ray job submit` would upload is measured by Ray's rules; what it would talk to is asked."""

import http.server
import json
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from cluster.launch import ray_submission
from cluster.launch.ray_submission import job_server_version, measure_upload
from jobs import preflight
from pipeline.command import InputError
from pipeline.system.ray_quirks import upload_rules

LIMIT_BYTES = upload_rules().limit_bytes


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")


@pytest.fixture
def checkout(tmp_path):
    """A folder with ignored things at several depths; `put` adds a file of a size."""
    root = tmp_path / "checkout"

    def put(name: str, num_bytes: int = 10) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(num_bytes)

    for name in ("jobs/train.py", "keep/ä.txt", "keep/data/kept.bin", "keep/.hidden", "notes.log"):
        put(name, len(name))
    for name in (".git/objects/pack", ".venv/lib/x.so", "keep/__pycache__/m.pyc", "data/shard.tar", "keep/x.log"):
        put(name, 10**6)
    put("keep/secret/large.bin", 10**6)
    (root / "keep" / "empty").mkdir()
    (root / ".gitignore").write_text("*.log\n!notes.log\n/data/\n")
    (root / "keep" / ".rayignore").write_text("secret/\n")
    return root, put


def test_the_upload_is_as_large_as_rays_own_archive(checkout, tmp_path):
    root, _ = checkout
    archive = tmp_path / "archive.zip"
    create_package(str(root), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    upload = measure_upload(root)
    assert upload.num_bytes == archive.stat().st_size
    assert set(upload.files) == {
        "jobs/train.py", "keep/ä.txt", "keep/data/kept.bin", "keep/.hidden", "notes.log", ".gitignore",
        "keep/.rayignore",
    }  # fmt: skip


def test_rays_switch_for_gitignore_is_heeded(checkout, monkeypatch):
    root, _ = checkout
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert {"keep/x.log", "data/shard.tar"} <= set(measure_upload(root).files)


def test_the_largest_come_first(checkout):
    root, put = checkout
    for name, num_bytes in [("big/a", 5000), ("big/b", 4000), ("wide/deep/c", 8000), ("top", 10**5)]:
        put(name, num_bytes)
    upload = measure_upload(root)
    assert upload.largest_files(2) == [("top", 10**5), ("wide/deep/c", 8000)]
    assert upload.largest_folders(2) == [("big", 9000), ("wide", 8000)]


class _JobServer(http.server.BaseHTTPRequestHandler):
    answer = (200, {"ray_version": ray_submission.client_version(), "version": "4"})

    def do_GET(self):
        status, document = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def job_server(monkeypatch):
    """The address of something that answers as a job server does; the real one is met in test_ray_node_checks.py."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _JobServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_sound_submission_ends_with_its_command_line(checkout, job_server, capsys):
    root, _ = checkout
    assert preflight.main(["--working-dir", str(root), "--address", job_server]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(
        f"upload of {root}: 7 files, 0.0 MiB of at most 100.0 MiB\njob server {job_server}: "
    )
    command = captured.out.replace("\\\n", " ")
    assert f"ray job submit --address {job_server} --working-dir {root}" in command
    assert '\'{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}\'' in command
    assert captured.err == ""


def test_what_was_found_is_a_document(checkout, job_server, capsys):
    root, _ = checkout
    assert preflight.main(["--working-dir", str(root), "--address", job_server, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["upload"]["num_files"] == 7 and document["job_server"]["address"] == job_server
    assert document["command"] in captured.err and document["command"].startswith("ray job submit")


def test_an_upload_near_the_limit_is_taken_apart(checkout, job_server, capsys):
    root, put = checkout
    put("keep/huge.bin", LIMIT_BYTES - 10_000)
    assert preflight.main(["--working-dir", str(root), "--address", job_server]) == 0
    assert "100.0 MiB  keep/huge.bin\n" in capsys.readouterr().out


def test_an_upload_over_the_limit_and_a_dead_server_are_told_together(checkout, capsys):
    root, put = checkout
    put("keep/huge.bin", LIMIT_BYTES)
    (root / "jobs" / "train.py").unlink()
    with pytest.raises(InputError) as refused:
        preflight.main(["--working-dir", str(root), "--address", "http://127.0.0.1:1"])
    large, incomplete, dead = str(refused.value).splitlines()
    assert large == (
        "the upload of 100.0 MiB is above Ray's limit of 100.0 MiB; add what the job does not need, see above, to "
        f"{root}/.rayignore"
    )
    assert incomplete.startswith("jobs/train.py is not in the upload; ")
    assert dead.startswith("no job server answers at http://127.0.0.1:1 (") and "ray start --head" in dead
    assert "keep/huge.bin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {}), "wants a token that this shell does not give (RAY_AUTH_MODE=token); set RAY_AUTH_MODE=token"),
        ((403, {}), "wants a token"),
        ((404, {}), "no job server answers at"),
        ((200, {}), "no job server answers at"),
    ],
)
def test_a_server_that_is_none_or_lets_nobody_in_is_told(job_server, monkeypatch, answer, said):
    monkeypatch.setattr(_JobServer, "answer", answer)
    with pytest.raises(InputError) as refused:
        job_server_version(job_server)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "auto", "ray://head:10001", "http://"])
def test_an_address_that_is_not_of_a_job_server_is_refused(address):
    with pytest.raises(InputError, match="is not the address of a job server; it reads http://HEAD:8265"):
        job_server_version(address)


def test_an_older_cluster_is_refused_and_another_release_is_said(checkout, job_server, monkeypatch, capsys):
    root, _ = checkout
    arguments = ["--working-dir", str(root), "--address", job_server]
    monkeypatch.setattr(_JobServer, "answer", (200, {"ray_version": "2.59.1"}))
    with pytest.raises(InputError, match=r"the cluster runs Ray 2\.59\.1, this project needs 2\.60 or newer; upgrade"):
        preflight.main(arguments)
    monkeypatch.setattr(_JobServer, "answer", (200, {"ray_version": "9.0.0"}))
    assert preflight.main(arguments) == 0
    assert capsys.readouterr().err.startswith("warning: the cluster runs Ray 9.0.0, this is ")


def test_a_variable_that_would_go_before_the_address_is_told(checkout, job_server, monkeypatch, capsys):
    root, _ = checkout
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(InputError, match=r"RAY_ADDRESS=http://elsewhere:8265 goes before --address .+; unset RAY_ADD"):
        preflight.main(["--working-dir", str(root), "--address", job_server])
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", job_server)
    assert preflight.main(["--working-dir", str(root)]) == 0
    assert f"job server {job_server}" in capsys.readouterr().out


def test_an_unset_mode_of_authentication_is_said(checkout, job_server, monkeypatch, capsys):
    root, _ = checkout
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert preflight.main(["--working-dir", str(root), "--address", job_server]) == 0
    assert capsys.readouterr().err.startswith("warning: RAY_AUTH_MODE is not set")


def test_a_cluster_that_is_open_to_everybody_is_said(checkout, job_server, monkeypatch, capsys):
    root, _ = checkout
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert preflight.main(["--working-dir", str(root), "--address", job_server]) == 0
    assert capsys.readouterr().err.startswith("warning: RAY_AUTH_MODE is disabled: whoever reaches the cluster's ports")


def test_a_ray_that_does_not_tell_its_rules_uploads_unmeasured(checkout, job_server, monkeypatch, capsys):
    root, _ = checkout
    monkeypatch.setattr(ray_submission, "upload_rules", lambda: None)
    assert preflight.main(["--working-dir", str(root), "--address", job_server]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: Ray ") and "the upload is not measured" in captured.err
    assert captured.out.startswith("job server ") and "ray job submit --address" in captured.out


def test_an_answer_without_a_version_is_told_or_done_without(job_server, monkeypatch):
    monkeypatch.setattr(_JobServer, "answer", (200, {"version": "4"}))
    with pytest.raises(InputError, match="the answer lacks 'ray_version'"):
        job_server_version(job_server)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", _AnswersNothing)
    assert job_server_version(job_server) is None


class _AnswersNothing:
    def __init__(self, address):
        pass

    def _do_request(self, *request):
        return SimpleNamespace(json=dict)


def test_a_ray_whose_client_has_other_methods_inside_does_not_tell_its_version(job_server, monkeypatch):
    assert job_server_version(job_server) == ray_submission.client_version()
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: object())
    assert job_server_version(job_server) is None
