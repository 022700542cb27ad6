"""A Docker daemon, a base image and the endpoint's image, for one test run; nothing of it stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "churn-endpoint:test"
BASE = "python:3.11-slim"
CLIENT = "/usr/bin/docker"  # Debian's: it has BuildKit without a plugin
# What the official image of that name has, from Debian's packages.
PACKAGES = "python3.11,python3.11-venv,ca-certificates,netbase,tzdata"


def why_not() -> str | None:
    """Why no daemon can be had here, or None where one can."""
    if os.environ.get("CHURN_TEST_CONTAINER") != "1":
        return "the image is built for real by `make test-container` only: it takes minutes"
    if os.geteuid() != 0:
        return "a Docker daemon of the test's own needs root"
    missing = [name for name in ("dockerd", "mmdebstrap") if shutil.which(name) is None]
    if missing or not Path(CLIENT).exists():
        return f"{' and '.join(missing) or CLIENT} is missing: run scripts/install_container_tools.sh"
    return None


@dataclass
class Docker:
    """A daemon with a folder and a socket of its own. Containers share this machine's network."""

    folder: Path

    def __post_init__(self) -> None:
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.folder / 'socket'}",
            "DOCKER_CONFIG": str(self.folder / "client"),
            "PATH": f"{Path(CLIENT).parent}:{os.environ['PATH']}",
        }
        self._had_key = Path("/etc/docker/key.json").exists()
        command = ["dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "exec"]
        command += ["--pidfile", self.folder / "pid", "--host", self.environment["DOCKER_HOST"]]
        command += ["--iptables=false", "--bridge=none"]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        began = time.monotonic()
        while subprocess.run([CLIENT, "info"], env=self.environment, capture_output=True, check=False).returncode:
            if self.process.poll() is not None or time.monotonic() - began > 60:
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.2)

    def __call__(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """What a command of Docker's prints."""
        done = subprocess.run(
            [CLIENT, *words], env=self.environment, capture_output=True, text=True, check=False, timeout=timeout
        )
        if check and done.returncode:
            raise RuntimeError(f"docker {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def make_base(self) -> None:
        """Make the base image from Debian's packages."""
        archive = self.folder / "base.tar"
        link = 'ln -s /usr/bin/python3.11 "$1/usr/local/bin/python"'
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", f"--customize-hook={link}"]
        subprocess.run([*command, "bookworm", str(archive)], check=True, timeout=600, capture_output=True)
        self("import", "--change", "ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", str(archive), BASE)
        archive.unlink()

    def build(self) -> None:
        """Build the endpoint's image as `make image` does."""
        environment = {"PYTHON": sys.executable, "DOCKER_BUILD_OPTIONS": "--network host --progress plain"}
        done = subprocess.run(
            [ROOT / "scripts" / "build_image.sh", IMAGE],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
        if done.returncode:
            raise RuntimeError(f"{done.stdout[-2000:]}\n{done.stderr[-5000:]}")

    def stop(self) -> None:
        """End all containers and the daemon, and remove what they left."""
        for container in self("ps", "--all", "--quiet", check=False).split():
            self("rm", "--force", "--volumes", container, check=False)
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", mount], check=True)  # the daemon leaves its network's name
        shutil.rmtree(self.folder)
        if not self._had_key:
            Path("/etc/docker/key.json").unlink(missing_ok=True)
