"""Runs the real helm on the chart. Knows no test."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "lamella"
FINDER = ROOT / "scripts" / "helm"
REQUIRE = "LAMELLA_REQUIRE_HELM"
KUBE_VERSION = "1.36.0"

Object = dict[str, Any]


def find_helm() -> tuple[str, str]:
    """(path, "") or ("", why there is none); builds one only where it is required."""
    command = [str(FINDER)] if os.environ.get(REQUIRE) else [str(FINDER), "--find"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout.strip(), "") if found.returncode == 0 else ("", found.stderr.strip())


@dataclass(frozen=True, slots=True)
class Helm:
    """A helm program, and a release that nobody installs."""

    program: str
    release: str = "lamella"
    namespace: str = "lamella-system"

    def run(self, *arguments: str, values: Mapping[str, Any] | None = None) -> tuple[int, str]:
        """(exit code, what it printed); ``values`` go in as a file would."""
        done = subprocess.run(
            [self.program, *arguments, "--kube-version", KUBE_VERSION, "-f", "-"],
            input=json.dumps(values or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def text(self, values: Mapping[str, Any] | None = None) -> str:
        """The chart as text; raises `ValueError` with helm's words when it refuses."""
        at = ("template", self.release, str(CHART), "-n", self.namespace)
        code, said = self.run(*at, values=values)
        if code:
            raise ValueError(said)
        return said

    def objects(self, values: Mapping[str, Any] | None = None) -> list[Object]:
        """The chart as objects, in helm's order."""
        return [each for each in yaml.safe_load_all(self.text(values)) if each]


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The only object of a kind (and name)."""
    (found,) = (
        each
        for each in objects
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    )
    return found


def without_crds(text: str) -> str:
    """A rendered chart without its CRD, which is compared byte for byte elsewhere."""
    documents = text.split("\n---\n")
    return "\n---\n".join(each for each in documents if "templates/crds.yaml" not in each)
