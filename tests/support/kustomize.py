"""As much of kustomize as `docker/kubernetes` uses: tests see what a cluster would be given.

Any field that it does not know is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "images"}
KNOWN |= {"configMapGenerator", "secretGenerator", "patches"}


def read(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def files_of(folder: Path) -> Iterator[Path]:
    """Every file and folder that a kustomization names."""
    (kustomization,) = read(folder / "kustomization.yaml")
    for name in kustomization.get("resources", []) + kustomization.get("components", []):
        yield folder / name
    for generator in _generators(kustomization):
        for name in generator.get("envs", []):
            yield folder / name
    for patch in kustomization.get("patches", []):
        yield folder / patch["path"]


def build(folder: Path, objects: list[Manifest] | None = None) -> list[Manifest]:
    """What `kustomize build` would print, but for the order and for hashes in names."""
    (kustomization,) = read(folder / "kustomization.yaml")
    assert set(kustomization) <= KNOWN, set(kustomization) - KNOWN
    built = objects if objects is not None else []
    for name in kustomization.get("resources", []):
        path = folder / name
        built += build(path) if path.is_dir() else deepcopy(read(path))
    for kind in ("ConfigMap", "Secret"):
        for generator in kustomization.get(f"{kind[0].lower()}{kind[1:]}Generator", []):
            _generate(built, folder, kind, generator)
    for name in kustomization.get("components", []):
        build(folder / name, built)
    for patch in kustomization.get("patches", []):
        (change,) = read(folder / patch["path"])
        target = patch.get("target") or {"kind": change["kind"], "name": change["metadata"]["name"]}
        matching = [each for each in built if _is_meant(each, target)]
        assert matching, f"{patch['path']} changes nothing"
        for each in matching:
            _change(each, change)
    for image in kustomization.get("images", []):
        _set_image(built, image)
    return built


def containers(manifest: Manifest) -> list[Manifest]:
    """Those of a Deployment's or a Job's pods."""
    found: list[Manifest] = manifest["spec"]["template"]["spec"]["containers"]
    return found


def _generators(kustomization: Manifest) -> list[Manifest]:
    kinds = ("configMapGenerator", "secretGenerator")
    return [generator for kind in kinds for generator in kustomization.get(kind, [])]


def _generate(built: list[Manifest], folder: Path, kind: str, generator: Manifest) -> None:
    lines = list(generator.get("literals", []))
    for name in generator.get("envs", []):
        path = folder / name
        # A Secret's is not in git, but for its example.
        lines += (path if path.exists() else folder / f"{name}.example").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    if generator.get("behavior") == "merge":
        target = {"kind": kind, "name": generator["name"]}
        (there,) = [each for each in built if _is_meant(each, target)]
        there["data"] |= values
    else:
        options = generator.get("options", {})
        metadata = {"name": generator["name"], "labels": options.get("labels", {})}
        built.append({"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": values})


def _is_meant(manifest: Manifest, target: Mapping[str, str]) -> bool:
    if manifest["kind"] != target["kind"]:
        return False
    if selector := target.get("labelSelector"):
        found = re.fullmatch(r"(\S+) in \((.+)\)", selector)
        assert found is not None, selector
        return manifest["metadata"]["labels"].get(found[1]) in found[2].split(", ")
    return bool(manifest["metadata"]["name"] == target["name"])


def _change(manifest: Manifest, change: Any) -> None:
    if isinstance(change, list):
        for operation in change:
            _replace(manifest, operation)
    else:
        name = manifest["metadata"]["name"]
        _merge(manifest, change)
        manifest["metadata"]["name"] = name


def _replace(manifest: Manifest, operation: Manifest) -> None:
    """The operation of RFC 6902."""
    assert operation["op"] == "replace", operation
    *parents, last = operation["path"].removeprefix("/").split("/")
    place: Any = manifest
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    assert last in place, operation
    place[last] = deepcopy(operation["value"])


def _merge(into: Manifest, change: Manifest) -> None:
    """A strategic merge: lists of what has a name by name, others as a whole."""
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif _is_named(value) and _is_named(into.get(key)):
            for each in value:
                there = [other for other in into[key] if other["name"] == each["name"]]
                if there:
                    _merge(there[0], each)
                else:
                    into[key].append(deepcopy(each))
        else:
            into[key] = deepcopy(value)


def _is_named(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and "name" in each for each in value
    )


def _set_image(built: list[Manifest], image: Manifest) -> None:
    used = 0
    for manifest in built:
        if manifest["kind"] in {"Deployment", "Job"}:
            for container in containers(manifest):
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
                    used += 1
    assert used, f"no container has the image {image['name']}"
