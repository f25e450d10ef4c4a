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
    main, metadata = component(application, "application"), {path: metadata_of(path) for path in libraries}
    components = [component(path, "library") for path in libraries]
    refs = {normal(part["name"]): part["bom-ref"] for part in [main, *components]}
    graph = [
        {"ref": refs[normal(about["Name"])], "dependsOn": sorted(refs[name] for name in wanted(about) if name in refs)}
        for about in [metadata_of(application), *metadata.values()]
    ]
    content = "".join(part["hashes"][0]["content"] for part in [main, *components])
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


def component(wheel: Path, kind: str) -> Json:
    """Return what the document says of one wheel."""
    about = metadata_of(wheel)
    name, version = about["Name"], about["Version"]
    purl = f"pkg:pypi/{normal(name)}@{version}"
    return {
        "type": kind,
        "bom-ref": purl,
        "purl": purl,
        "name": name,
        "version": version,
        "licenses": [licence(about)],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
    }


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
