"""Where a model comes from: ``hf://``, ``file:``, ``pvc://`` and ``oci://`` addresses, parsed.

Touches no file and no network: whether the thing exists is the opener's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lamella_contract.errors import InvalidSpec

HF = "hf"  # a repository of a Hugging Face hub
FILE = "file"  # a folder or a GGUF file of this machine (or of the worker's image)
PVC = "pvc"  # a folder of a PersistentVolumeClaim
OCI = "oci"  # an image whose root is the model's folder

MAX_URI = 512  # characters of an address; the resource's schema has the same bound

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WANT = "hf://org/name[@revision], file:/path, pvc://claim/path or oci://registry/name:tag"
_HF_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})"
_HF_NAME = re.compile(rf"{_HF_PART}(?:/{_HF_PART})?")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,127})")
_CLAIM = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_IMAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*(?::[0-9]+)?(?:/[a-z0-9._-]+)+[a-zA-Z0-9._:@-]*")


@dataclass(frozen=True, slots=True)
class ModelUri:
    """A parsed address.

    ``location`` is the repository (hf), the path (file), the claim (pvc) or the image (oci);
    ``subpath`` the folder inside a claim. ``revision`` "" means the default one.
    """

    scheme: str
    location: str
    revision: str = ""
    subpath: str = ""

    def __str__(self) -> str:
        if self.scheme == FILE:
            return f"file:{self.location}"
        text = f"{self.scheme}://{self.location}"
        if self.subpath:
            text += f"/{self.subpath}"
        return f"{text}@{self.revision}" if self.revision else text

    @property
    def default_name(self) -> str:
        """The last part of the address, which clients see unless told otherwise."""
        text = self.subpath or self.location
        if self.scheme == OCI:
            text = text.split("@")[0].rpartition("/")[2].split(":")[0]
        return text.rstrip("/").rpartition("/")[2] or text


def parse_model_uri(text: object, path: str = "spec.model.uri") -> ModelUri:
    """Parse an address; raises `InvalidSpec` at ``path``.

    A relative ``file:`` path stays relative: who runs the manifest knows relative to what.
    """
    if not isinstance(text, str) or not text:
        raise InvalidSpec(path, text, _WANT)
    if len(text) > MAX_URI:
        raise InvalidSpec(path, text, f"at most {MAX_URI} characters")
    if _CONTROL.search(text):
        raise InvalidSpec(path, text, "no control characters")
    if text.startswith("file:"):
        location = text[len("file:") :]
        if location.startswith("//"):
            # file://host/path names another machine; only the empty host is this one
            location = location[2:]
            if not location.startswith("/"):
                raise InvalidSpec(path, text, "file:/path or file:relative/path")
        if not location:
            raise InvalidSpec(path, text, "a path behind file:")
        return ModelUri(FILE, location)
    scheme, separator, rest = text.partition("://")
    if separator and scheme == HF:
        return _hf(text, rest, path)
    if separator and scheme == PVC:
        return _pvc(text, rest, path)
    if separator and scheme == OCI:
        if not _IMAGE.fullmatch(rest):
            raise InvalidSpec(path, text, "oci://registry/name:tag")
        return ModelUri(OCI, rest)
    raise InvalidSpec(path, text, _WANT)


def _hf(text: str, rest: str, path: str) -> ModelUri:
    name, at, revision = rest.partition("@")
    if not _HF_NAME.fullmatch(name) or ".." in name:
        raise InvalidSpec(path, text, "hf://org/name[@revision]")
    if at and not is_revision(revision):
        raise InvalidSpec(path, text, "a branch, tag or commit behind @")
    return ModelUri(HF, name, revision)


def _pvc(text: str, rest: str, path: str) -> ModelUri:
    claim, _, subpath = rest.partition("/")
    subpath = subpath.strip("/")
    if not _CLAIM.fullmatch(claim) or ".." in subpath.split("/"):
        raise InvalidSpec(path, text, "pvc://claim/path")
    return ModelUri(PVC, claim, subpath=subpath)


def is_revision(text: str) -> bool:
    """Whether ``text`` can name a branch, tag or commit."""
    return _REVISION.fullmatch(text) is not None and ".." not in text
