"""Build the Dockerfile for real and run what it made, on a machine without a container engine.

    python -m tools.image_check [--python /opt/python3.13]

What it needs: Linux, root, and of Debian ``buildah`` and ``debootstrap``, which it installs where it may. The base image that
the Dockerfile names is made here: Debian by debootstrap, and in it the interpreter of ``--python``. The build is the
Dockerfile's own. What it made runs as the image says, as the user it names, on a root that cannot be written, with the
variables of the README's command and the names that an engine puts into ``/etc/hosts``: an official client calls a tool of a
server that checks its ``Host``, the server is killed and comes back, the same session calls again, a page of the published
address may ask, ``health`` says that it is ready, and SIGTERM ends it with 0.

The rule of this file: where something is missing it says what, and exits with 3; 1 is a fault of the image.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from mcp_sidecar.commands.demo.client import shopper
from tools.environments import ROOT, install_debian

CACHE: Final = ROOT / ".cache" / "image"
NEEDED: Final = {"buildah": "buildah", "debootstrap": "debootstrap"}
LIBRARIES: Final = (
    "ca-certificates,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libuuid1,libexpat1"
)
"""Of Debian, what an interpreter is linked with."""

HOST: Final = "host.docker.internal"
NOT_TO_BE_HAD: Final = 3
ENDS_WITHIN_S, ANSWERS_WITHIN_S = 20, 60
FROM: Final = re.compile(r"^FROM (\S+)", re.MULTILINE)


class Missing(Exception):
    """Something that this machine does not have; the text says what."""


class Fault(Exception):
    """The image is not what it should be."""


@dataclass(frozen=True, slots=True)
class Image:
    """What was built, mounted; ``config`` is how it is to be run."""

    root: Path
    config: dict[str, Any]
    size_mb: float

    @property
    def environment(self) -> dict[str, str]:
        """The variables that it sets."""
        return dict(item.split("=", 1) for item in self.config["Env"])


def run(*command: str, quiet: bool = False) -> str:
    """What a program writes. Raises ``Fault`` where it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Fault(f"{' '.join(command[:3])}: {done.stderr.strip()[-2000:]}")
    if not quiet:
        print(f"  {' '.join(command[:2])}", flush=True)
    return done.stdout.strip()


def buildah(*arguments: str) -> str:
    """Run buildah with a store of its own."""
    store = ("--root", str(CACHE / "store"), "--runroot", str(CACHE / "run"), "--storage-driver", "vfs")
    return run("buildah", *store, *arguments, quiet=True)


# -- the base ---------------------------------------------------------------------------------------------------------


def named_base() -> str:
    """The one image that the Dockerfile begins with."""
    names: set[str] = set(FROM.findall((ROOT / "Dockerfile").read_text(encoding="utf-8")))
    if len(names) != 1:
        raise Fault(f"the Dockerfile begins with several images: {', '.join(sorted(names))}")
    return names.pop()


def interpreter(given: str | None, base: str) -> Path:
    """The folder of the interpreter for the base: of its version where that is here, else the one that runs this."""
    version = re.search(r":(\d+\.\d+)", base)
    asked = "import sys; print(sys.base_prefix); print('%d.%d' % sys.version_info[:2])"
    wanted = given or (shutil.which(f"python{version[1]}") if version else None) or sys.executable
    try:
        told = run(wanted, "-c", asked, quiet=True)
    except Fault:  # a name that stands for none, as pyenv's do
        told = run(sys.executable, "-c", asked, quiet=True)
    prefix, _, found = told.partition("\n")
    if version is not None and found != version[1]:
        print(f"  no Python {version[1]} here: the base gets {found}")
    if prefix == "/usr":
        raise Missing(
            "an interpreter in a folder of its own (pyenv, uv, a build): the system's cannot be moved; name it by --python"
        )
    return Path(prefix)


def make_base(base: str, prefix: Path) -> None:
    """Make the base image, unless it is there."""
    mark = CACHE / "base.made-of"
    made_of = f"{base} {prefix}"
    if mark.exists() and mark.read_text() == made_of:
        return
    root = CACHE / "debian"
    shutil.rmtree(root, ignore_errors=True)
    suite = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
    if suite is None:
        raise Missing("a Debian: the base gets the libraries that the interpreter is linked with")
    alone = ("unshare", "--mount", "--propagation", "private")  # what it mounts is gone with it, whatever becomes of it
    run(*alone, "debootstrap", "--variant=minbase", f"--include={LIBRARIES}", suite[1], str(root))
    left_out = ("__pycache__", "test", "*.a", "idle*", "tkinter", "site-packages")
    for folder in ("bin", "lib"):
        source, target = prefix / folder, root / "usr" / "local" / folder
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out))
    run("chroot", str(root), "/sbin/ldconfig")
    run("chroot", str(root), "/usr/local/bin/python3", "-m", "ensurepip", "--default-pip")
    (root / "usr" / "local" / "bin" / "python").unlink(missing_ok=True)
    (root / "usr" / "local" / "bin" / "python").symlink_to("python3")
    run("chroot", str(root), "/usr/local/bin/python", "-m", "pip", "--version")
    container = buildah("from", "scratch")
    buildah("add", container, str(root), "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin", container)
    buildah("commit", container, f"docker.io/library/{base}")
    buildah("rm", container)
    mark.write_text(made_of)


# -- the image --------------------------------------------------------------------------------------------------------


def build() -> str:
    """Build the Dockerfile as it stands, with this machine's way to its registry; its name."""
    ways = [path for path in ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt") if Path(path).exists()]
    mounts = [word for path in ways for word in ("--volume", f"{path}:{path}:ro")]
    buildah(
        *("bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--layers=false"),
        *(*mounts, "--tag", "mcp-sidecar-check", "--file", "Dockerfile", "."),
    )
    return "mcp-sidecar-check"


@contextmanager
def mounted(name: str) -> Iterator[Image]:
    """The built image, as files."""
    container = buildah("from", "--pull-never", name)
    try:
        root = Path(buildah("mount", container))
        told = json.loads(buildah("inspect", "--type", "image", name))
        yield Image(root, told["Docker"]["config"], _megabytes(root))
    finally:
        buildah("umount", container)
        buildah("rm", container)


def _megabytes(root: Path) -> float:
    files = (path.lstat() for path in (root / "opt").rglob("*") if not path.is_symlink())
    return sum(each.st_size for each in files) / 1e6


def command(image: Image, words: Sequence[str], environment: dict[str, str]) -> list[str]:
    """How to run something as the image would, on a root that cannot be written but for its volume."""
    user = image.config["User"]
    if user.partition(":")[0] in ("", "0", "root"):
        raise Fault(f"runs as {user or 'root'}")
    told = {**image.environment, **environment}
    state = told["XDG_STATE_HOME"] + "/mcp-sidecar"
    script = (
        'set -e; mount --bind "$0" "$0"; mount -t tmpfs tmpfs "$0/proc"; mount --rbind /proc "$0/proc"; '
        f'mount -t tmpfs -o mode=0700,uid={user.partition(":")[0]},gid={user.partition(":")[2]} tmpfs "$0{state}"; '
        'mount -o remount,ro,bind "$0"; exec chroot --userspec="$1" "$0" env -i "${@:2}"'
    )
    pairs = [f"{name}={value}" for name, value in told.items()]
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-c",
        script,
        str(image.root),
        user,
        *pairs,
        *words,
    ]


# -- what is tried ----------------------------------------------------------------------------------------------------


@contextmanager
def started(words: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, which is killed if it has not ended by itself."""
    process = subprocess.Popen(words, text=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def server(port: int) -> list[str]:
    """The demo's server, which is a user's own as far as the image knows."""
    return [sys.executable, "-m", "mcp_sidecar.commands.demo.server", str(port)]


def name_its_host(root: Path) -> None:
    """What ``--add-host=host.docker.internal:host-gateway`` does; here the host is the machine itself."""
    (root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n127.0.0.1 {HOST}\n", encoding="utf-8")


def ask_as_a_page(url: str) -> None:
    """Ask as a page that is served through the sidecar. Raises ``Fault`` where it may not."""
    body, json_type = b'{"jsonrpc":"2.0","id":1,"method":"ping"}', "application/json"
    headers = {"Origin": url.rpartition("/")[0], "Content-Type": json_type, "Accept": f"{json_type}, text/event-stream"}
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=ANSWERS_WITHIN_S)
    connection.request("POST", "/mcp", body, headers)
    status = connection.getresponse().status
    connection.close()
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.MISDIRECTED_REQUEST):
        raise Fault(f"a page of its own address gets {status}")


async def serve_a_client(url: str, restart: Callable[[], None]) -> None:
    """An official client calls, the server restarts, the client calls again."""
    async with asyncio.timeout(ANSWERS_WITHIN_S):
        async with shopper(url) as client:
            for item in ("apple", "pear"):
                call = await client.add(item)
                if not call.succeeded:
                    raise Fault(f"a call failed: {call.text}")
                await asyncio.to_thread(restart)


def wait_for(word: str, log: Path) -> None:
    """Until a log has it. Raises ``TimeoutError``."""
    for _ in range(ANSWERS_WITHIN_S * 20):
        if word in log.read_text(encoding="utf-8"):
            return
        time.sleep(0.05)
    raise TimeoutError(word)


def end(sidecar: subprocess.Popen[str]) -> None:
    """Ask it to end. Raises ``Fault`` where it ends with a complaint."""
    sidecar.send_signal(signal.SIGTERM)
    if sidecar.wait(ENDS_WITHIN_S) != 0:
        raise Fault(f"SIGTERM: status {sidecar.returncode}")


def keeps_sessions(log: str) -> None:
    """Raises ``Fault`` where they are not kept in the volume."""
    if '"store": "sqlite:/var/lib/mcp-sidecar/' not in log:
        raise Fault(f"sessions are not kept where the image says: {log[:500]}")


def try_it(image: Image) -> None:
    """Run the image and look at what it does. Raises ``Fault``."""
    upstream, listen, admin = free_port(), free_port(), free_port()
    environment = {
        "MCP_SIDECAR_UPSTREAM": f"http://{HOST}:{upstream}/mcp",
        "MCP_SIDECAR_LISTEN__PUBLIC_URL": f"http://localhost:{listen}",
        "MCP_SIDECAR_LISTEN": f"0.0.0.0:{listen}",
        "MCP_SIDECAR_ADMIN": f"127.0.0.1:{admin}",
    }
    name_its_host(image.root)
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        written = stack.enter_context(log.open("w"))
        behind: list[subprocess.Popen[str]] = []

        def restart() -> None:
            for former in behind[-1:]:
                former.kill()
                former.wait()
            behind.append(stack.enter_context(started(server(upstream), stdout=subprocess.PIPE, cwd=ROOT)))
            output = behind[-1].stdout
            assert output is not None
            output.readline()

        restart()
        words = command(image, image.config["Entrypoint"], environment)
        sidecar = stack.enter_context(started(words, stderr=written))
        try:
            wait_for("listening", log)
            asyncio.run(serve_a_client(f"http://127.0.0.1:{listen}/mcp", restart))
            print("  an official client's session went on over a restart of its server")
            ask_as_a_page(f"http://localhost:{listen}/mcp")
            print("  a page of the published address may ask")
            run(*command(image, [image.config["Entrypoint"][0], "health"], environment), quiet=True)
            print("  health: ready")
            end(sidecar)
            print("  SIGTERM: 0")
        except (TimeoutError, subprocess.TimeoutExpired) as late:
            raise Fault(f"not in time ({late}): {log.read_text(encoding='utf-8')[-1000:]}") from None
        except Fault as fault:
            raise Fault(f"{fault}\n{log.read_text(encoding='utf-8')[-1000:]}") from None
        keeps_sessions(log.read_text(encoding="utf-8"))
        print("  sessions in its volume, nothing else written: the root was read-only")


def look(image: Image) -> None:
    """What must not be in it."""
    pip = list((image.root / "opt").rglob("pip"))
    if pip:
        raise Fault(f"has pip: {pip[0]}")
    missing = {"org.opencontainers.image.title", "org.opencontainers.image.licenses"} - image.config["Labels"].keys()
    if missing:
        raise Fault(f"lacks the labels {', '.join(sorted(missing))}")
    print(f"  {image.size_mb:.0f} MB over the base; runs as {image.config['User']}; no pip")


def look_around() -> None:
    """Raises ``Missing`` where this cannot be done."""
    if sys.platform != "linux" or os.getuid() != 0:
        raise Missing("Linux and root: it makes a Debian, mounts it, and changes its user")
    if not install_debian(NEEDED, print):
        raise Missing(" and ".join(NEEDED.values()))


def main(arguments: Sequence[str]) -> int:
    """Build, look, run; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.image_check", description="Build the image for real and run it."
    )
    parser.add_argument("--python", help="the interpreter that goes into the base image")
    given = parser.parse_args(arguments)
    try:
        look_around()
        CACHE.mkdir(parents=True, exist_ok=True)
        base = named_base()
        print(f"base {base}")
        make_base(base, interpreter(given.python, base))
        print("build")
        with mounted(build()) as image:
            look(image)
            print("run")
            try_it(image)
    except Missing as missing:
        print(f"image-check: not here: needs {missing}", file=sys.stderr)
        return NOT_TO_BE_HAD
    except Fault as fault:
        print(f"image-check: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
