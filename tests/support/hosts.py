"""A real ComfyUI for the tests: found, not installed. Scripts run inside its interpreter; a server runs as a subprocess."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2]
SCRIPTS = PACK / "tests" / "comfyui" / "hostscripts"
NO_HOST = "no ComfyUI found: set COMFYUI_PATH"
# On a CPU glibc gives big blocks back to the system after every operation, and OpenMP threads that wait for each other spin:
# either makes the small models of these tests many times slower where something else runs beside them.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592", "OMP_NUM_THREADS": "1"}


def find_host() -> tuple[Path, Path] | None:
    """Folder and interpreter of a ComfyUI, or None. A COMFYUI_PATH that holds none is an error, not a reason to skip."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        places = [Path(named).expanduser()]
    else:
        link = Path(os.path.abspath(__file__)).parents[2]  # not resolved: the pack may be linked into custom_nodes
        places = [link.parents[1]] if link.parent.name == "custom_nodes" else []
        places.append(Path.home() / "comfy" / "ComfyUI")
    for root in places:
        python = Path(os.environ.get("COMFYUI_PYTHON", root / ".venv" / "bin" / "python"))
        if (root / "main.py").is_file() and (root / "comfy").is_dir() and python.is_file():
            return root, python
    if named:
        raise FileNotFoundError(f"COMFYUI_PATH is {named}, but there is no main.py with .venv/bin/python (or COMFYUI_PYTHON)")
    return None


def run_in_host(script: str | Path, *args: object, timeout: float = 300) -> dict[str, Any]:
    """Runs a script, by default of tests/comfyui/hostscripts, in the host's interpreter; returns the JSON of its last line."""
    found = find_host()
    if found is None:
        raise RuntimeError(NO_HOST)
    root, python = found
    process = subprocess.run(
        [str(python), str(SCRIPTS / script), *map(str, args)],
        cwd=root,
        env=ENVIRONMENT | os.environ | {"SEQLORA_HOST": str(root)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if process.returncode != 0:
        raise AssertionError(f"{script} failed with {process.returncode}:\n{process.stdout[-2000:]}\n{process.stderr[-6000:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


class PromptRefusedError(AssertionError):
    """The server did not accept a workflow; the message is its answer."""


class HostServer:
    """A ComfyUI server on a CPU with this pack and nothing else, in a folder of its own.

    `base` holds models/, input/, output/ and user/; whatever a test puts under models/ the server finds.
    """

    def __init__(self, *arguments: str, boot_timeout: float = 180):
        self.arguments = arguments
        self.boot_timeout = boot_timeout
        self.client_id = uuid.uuid4().hex

    def __enter__(self) -> HostServer:
        found = find_host()
        if found is None:
            raise RuntimeError(NO_HOST)
        root, python = found
        self._folder = tempfile.TemporaryDirectory(prefix="seqlora-host-", ignore_cleanup_errors=True)
        self.base = Path(self._folder.name)
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir()
        (self.base / "custom_nodes" / "seqlora").symlink_to(PACK, target_is_directory=True)
        self.output_dir, self.models_dir, self.input_dir = self.base / "output", self.base / "models", self.base / "input"
        self.port = _free_port()
        self.log = self.base / "server.log"
        command = [str(python), "main.py", "--cpu", "--base-directory", str(self.base), "--port", str(self.port)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes", *self.arguments]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=root, env=ENVIRONMENT | os.environ, stdout=log, stderr=log)
        self.pid = self._process.pid
        try:
            self._wait_for_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def get(self, path: str) -> Any:
        """GET; JSON is decoded, anything else comes back as bytes."""
        return self._request(path)

    def post(self, path: str, body: object) -> Any:
        return self._request(path, json.dumps(body).encode())

    def post_prompt(self, workflow: dict[str, dict]) -> str:
        """Queues a workflow in the API format and returns its prompt id. Raises PromptRefusedError when validation fails."""
        try:
            return self.post("/prompt", {"prompt": workflow, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptRefusedError(error.read().decode()) from None

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry of a prompt once it has ended, well or not: see entry["status"]["status_str"]."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            self._check_alive()
            time.sleep(0.2)
        raise TimeoutError(f"prompt not done after {timeout} s:\n{self.log_tail()}")

    def run(self, workflow: dict[str, dict], timeout: float = 300) -> dict[str, dict]:
        """Runs a workflow to its end and returns its outputs by node id; a failed one raises with the host's messages."""
        entry = self.wait(self.post_prompt(workflow), timeout)
        if entry["status"]["status_str"] != "success":
            raise AssertionError(f"{error_message(entry)}\n{self.log_tail()}")
        return entry["outputs"]

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def log_tail(self, characters: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    def _request(self, path: str, data: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            body = response.read()
            is_json = response.headers.get_content_type() == "application/json"
        return json.loads(body) if is_json and body else body

    def _wait_for_boot(self) -> None:
        end = time.monotonic() + self.boot_timeout
        while time.monotonic() < end:
            self._check_alive()
            try:
                self.get("/system_stats")
                return
            except OSError:  # nobody listens yet
                time.sleep(0.2)
        raise TimeoutError(f"ComfyUI did not start within {self.boot_timeout} s:\n{self.log_tail()}")

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"ComfyUI ended with {self._process.returncode}:\n{self.log_tail()}")


def error_message(entry: dict[str, Any]) -> str:
    """What the host reported for a history entry that failed: 'ExceptionType: message', or '' if it did not fail."""
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{details['exception_type']}: {details['exception_message'].strip()}"
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
