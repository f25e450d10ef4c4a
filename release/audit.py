"""Ask the advisory database about every pinned version, and say so where it could not be asked.

Exit status: 0 if all were found free of known vulnerabilities, 1 if not, 2 if some could not be looked up.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements" / "run.txt"


def audit() -> int:
    """Run pip-audit; say what it found in plain words."""
    asking = ["-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip", "--format", "json"]
    asked = subprocess.run([sys.executable, *asking], capture_output=True, text=True, check=False)
    if not asked.stdout:
        print(asked.stderr.strip().rpartition("\n")[2])
        return nothing()
    packages = json.loads(asked.stdout)["dependencies"]
    found = [(package, flaw) for package in packages for flaw in package.get("vulns", ())]
    for package, flaw in found:
        fixed = ", ".join(flaw["fix_versions"]) or "none yet"
        print(f"{package['name']} {package['version']}: {flaw['id']}, fixed in: {fixed}")
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return nothing()
    print(f"{len(packages) - len(unknown)} of {len(packages)} packages looked up, {len(found)} known vulnerabilities")
    if unknown:
        print("the database does not know:", ", ".join(unknown))
    return 1 if found else 2 if unknown else 0


def nothing() -> int:
    """Say that the question was not answered: that is not the same as a good answer."""
    print("Nothing was audited: the advisory database cannot be reached from here.")
    return 2


if __name__ == "__main__":
    sys.exit(audit())
