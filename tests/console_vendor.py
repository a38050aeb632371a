"""The front-end code of others that is committed: taken from npm's registry, and checked.

    python tests/console_vendor.py --write    fetch what gateway/console/npm/package-lock.json names, and renew the files
    python tests/console_vendor.py            the same without writing: fails where a committed file is another

Needs npm, which checks what it fetches against the hashes in the lock. Without it, `tests/gateway/test_console_files.py`
holds the files to the hashes in `SHA256SUMS`, which is written here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
NPM = ROOT / "gateway/console/npm"
VENDOR = ROOT / "gateway/console/static/vendor"
FOR_TESTS = ROOT / "tests/e2e/vendor"
FILES = {
    VENDOR / "preact.mjs": "preact/dist/preact.mjs",
    VENDOR / "preact.LICENSE.txt": "preact/LICENSE",
    VENDOR / "hooks.mjs": "preact/hooks/dist/hooks.mjs",
    VENDOR / "htm.mjs": "htm/dist/htm.mjs",
    VENDOR / "htm.LICENSE.txt": "htm/LICENSE",
    FOR_TESTS / "axe.min.js": "axe-core/axe.min.js",
    FOR_TESTS / "axe.LICENSE.txt": "axe-core/LICENSE",
}


def taken(modules: Path) -> dict[Path, bytes]:
    """The files as they are to be committed: as published, but for two things that a browser cannot follow without more."""
    found = {}
    for path, source in FILES.items():
        content = (modules / source).read_bytes()
        if path.suffix == ".mjs":
            content = content.replace(b'from"preact"', b'from"./preact.mjs"')
            content = content.partition(b"\n//# sourceMappingURL=")[0].rstrip() + b"\n"
        found[path] = content
    return found


def sums(files: dict[Path, bytes]) -> bytes:
    lines = [
        f"{sha256(content).hexdigest()}  {path.relative_to(ROOT).as_posix()}\n"
        for path, content in files.items()
    ]
    return "".join(sorted(lines, key=lambda line: line[66:])).encode()


def main() -> int:
    with TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NPM / name, folder)
        words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(words, cwd=folder, check=True)
        files = taken(Path(folder) / "node_modules")
    files[NPM / "SHA256SUMS"] = sums(files)
    if "--write" in sys.argv:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return 0
    others = [str(path) for path, content in files.items() if path.read_bytes() != content]
    sys.stdout.write(f"{chr(10).join(others) or 'all as published'}\n")
    return bool(others)


if __name__ == "__main__":
    sys.exit(main())
