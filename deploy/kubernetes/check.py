"""Builds every overlay, and every component on the cpu overlay, and checks each object; `make kubernetes-test`.

Kubernetes' own kinds are checked by kubernetes-validate, other kinds by schemas/. An unknown field is an error.
The ties to the server's code are tests/deploy/test_kubernetes.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
KUBERNETES = "1.37"  # the newest that kubernetes-validate has
WITHOUT_CRDS = ("overlays/cpu", "overlays/gpu")  # these apply to a cluster that has no custom resources


def main() -> int:
    """Run the checks; the exit status is the number of objects that are wrong, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the built objects go")
    parser.add_argument("--crds", type=Path, nargs="*", default=[], metavar="FILE", help="check these kinds' CRDs too")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    schemas, crds = dict(_own_schemas()), dict(_crd_schemas(args.crds))
    num_mistakes = 0
    for name, text in _builds():
        (args.out / f"{name.replace('/', '-')}.yaml").write_text(text, encoding="utf-8")
        objects = list(yaml.safe_load_all(text))
        mistakes = [mistake for item in objects for mistake in _mistakes(item, name, schemas, crds)]
        num_mistakes += len(mistakes)
        sys.stdout.write("".join(f"{name}: {mistake}\n" for mistake in mistakes))
        sys.stdout.write(f"{name}: {len(objects)} objects, {len(mistakes)} mistakes\n")
    return min(num_mistakes, 1)


def _builds() -> Iterator[tuple[str, str]]:
    """Each overlay, and each component alone on the cpu overlay, as kustomize builds it."""
    for overlay in sorted((HERE / "overlays").iterdir()):
        yield f"overlays/{overlay.name}", _kustomize(overlay)
    for component in sorted((HERE / "components").iterdir()):
        with tempfile.TemporaryDirectory() as folder:
            top = Path(folder).resolve()
            content = {
                "namespace": "deepseek-serve",
                "resources": [os.path.relpath(HERE / "overlays" / "cpu", top)],
                "components": [os.path.relpath(component, top)],
                "images": [{"name": "deepseek-serve", "newTag": "0.1.0"}],
            }
            (top / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
            yield f"components/{component.name}", _kustomize(top)


def _kustomize(folder: Path) -> str:
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    return subprocess.run([*command, str(folder)], check=True, stdout=subprocess.PIPE, text=True).stdout


def _mistakes(item: dict[str, Any], build: str, schemas: dict[str, Any], crds: dict[str, Any]) -> Iterator[str]:
    """What is wrong with an object, and with a picker's configuration inside a ConfigMap."""
    kind = f"{item['apiVersion']} {item['kind']}"
    name = f"{kind} {item.get('metadata', {}).get('name', '')}"
    try:
        if kind in schemas:
            if build in WITHOUT_CRDS:
                yield f"{name}: this overlay is for clusters without custom resources"
            jsonschema.Draft202012Validator(schemas[kind]).validate(item)
            if crds:
                jsonschema.Draft202012Validator(crds[kind]).validate(item)
        else:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except jsonschema.ValidationError as error:
        yield f"{name}: {error.json_path}: {error.message}"
    except (kubernetes_validate.SchemaNotFoundError, KeyError):
        yield f"{name}: no schema for this kind"
    for file, text in (item.get("data") or {}).items() if item["kind"] == "ConfigMap" else ():
        if file.endswith(".yaml"):
            yield from _mistakes(yaml.safe_load(text), build, schemas, {})


def _own_schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    metadata = {"properties": dict.fromkeys(("name", "namespace", "labels", "annotations"), True)}
    for path in sorted((HERE / "schemas").glob("*.yaml")):
        schema = yaml.safe_load(path.read_text(encoding="utf-8"))
        properties = {"apiVersion": True, "kind": True, **schema.get("properties", {})}
        required = schema.get("required", [])
        if "spec" in schema:
            properties |= {"metadata": metadata, "spec": schema["spec"]}
            required = ["metadata", "spec"]
        whole = {"properties": properties, "required": required, "$defs": schema.get("$defs", {})}
        yield f"{schema['apiVersion']} {path.stem}", _strict(whole)


def _crd_schemas(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas inside CustomResourceDefinitions, as files or as the list that `kubectl get crd -o yaml` prints."""
    for path in paths:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            for crd in (document or {}).get("items", [document] if document else []):
                for version in crd["spec"]["versions"]:
                    schema = _strict(version["schema"]["openAPIV3Schema"])
                    schema["properties"]["metadata"] = True
                    yield f"{crd['spec']['group']}/{version['name']} {crd['spec']['names']['kind']}", schema


def _strict(schema: Any) -> Any:
    """The schema without room for fields that it does not name."""
    if not isinstance(schema, dict):
        return schema
    strict = dict(schema)
    for key in strict.keys() & {"properties", "$defs"}:
        strict[key] = {name: _strict(value) for name, value in schema[key].items()}
    for key in strict.keys() & {"items", "additionalProperties"}:
        strict[key] = _strict(schema[key])
    if "oneOf" in strict:
        strict["oneOf"] = [_strict(choice) for choice in schema["oneOf"]]
    if "properties" in strict and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict = {"type": "object", "additionalProperties": False} | strict
    return strict


if __name__ == "__main__":
    sys.exit(main())
