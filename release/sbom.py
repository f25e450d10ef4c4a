"""A software bill of materials in CycloneDX 1.6: what is shipped, from which files, under which licences."""

import hashlib
import re
import uuid
from datetime import UTC, datetime
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

Json = dict[str, Any]


def bom(application: Path, libraries: list[Path], epoch: int) -> Json:
    """Return the document for a wheel and those that it is shipped with, made at that time (seconds)."""
    main = component([application], "application")
    components = [component(wheels, "library") for wheels in by_package(libraries)]
    refs = {normal(part["name"]): part["bom-ref"] for part in [main, *components]}
    graph = [
        {"ref": ref_of(about), "dependsOn": sorted(refs[name] for name in wanted(about) if name in refs)}
        for about in (metadata_of(wheels[0]) for wheels in [[application], *by_package(libraries)])
    ]
    content = "".join(held["content"] for part in [main, *components] for held in part["hashes"])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, content).urn,
        "version": 1,
        "metadata": {"timestamp": datetime.fromtimestamp(epoch, UTC).isoformat(), "component": main},
        "components": components,
        "dependencies": sorted(graph, key=lambda node: node["ref"]),
    }


def by_package(wheels: list[Path]) -> list[list[Path]]:
    """Return the wheels of each package together: a compiled one has several, one for each Python."""
    packages: dict[str, list[Path]] = {}
    for wheel in wheels:
        packages.setdefault(ref_of(metadata_of(wheel)), []).append(wheel)
    return list(packages.values())


def component(wheels: list[Path], kind: str) -> Json:
    """Return what the document says of one package."""
    about = metadata_of(wheels[0])
    return {
        "type": kind,
        "bom-ref": ref_of(about),
        "purl": ref_of(about),
        "name": about["Name"],
        "version": about["Version"],
        "licenses": [licence(about)],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()} for wheel in wheels],
    }


def ref_of(about: Message) -> str:
    """Return the package URL of a version of a package."""
    return f"pkg:pypi/{normal(about['Name'])}@{about['Version']}"


def metadata_of(wheel: Path) -> Message:
    """Return the core metadata of a wheel."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def licence(about: Message) -> Json:
    """Return the licence as its authors put it: an SPDX expression (PEP 639), or words."""
    if expression := about["License-Expression"]:
        return {"expression": expression}
    return {"license": {"name": about["License"]}}


def wanted(about: Message) -> set[str]:
    """Return the names of what a package needs; what its extras need besides is not shipped."""
    lines = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    return {normal(found[0]) for line in lines if (found := re.match(r"[A-Za-z0-9._-]+", line))}


def normal(name: str) -> str:
    """Return a package's name in the one spelling that indexes compare (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
