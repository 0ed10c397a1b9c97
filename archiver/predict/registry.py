"""Packages by name: found in the home folder, fetched, added, removed."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from archiver.errors import (
    InvalidModelError,
    ModelMismatchError,
    ModelMissingError,
    OutputError,
    UsageError,
)
from archiver.predict import home
from archiver.predict.fetch import fetch_file
from archiver.predict.hub import HubAddress, fetch_hub_model, is_hub_address
from archiver.predict.known import DEFAULT_MODEL, KNOWN_MODELS, KnownModel
from archiver.predict.names import checked_name, name_from, read_names, write_names
from archiver.predict.package import (
    ARRAYS_FILE,
    FOLDER_DIGITS,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    ModelPackage,
    load_package,
    store_package,
)
from archiver.types import LocalHeads

if TYPE_CHECKING:
    from archiver.predict.making import Changes
    from archiver.predict.sources import SourceModel

_FINGERPRINT_PREFIX = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelListing:
    """One model for ``model list`` and ``model show``.

    Attributes:
        name: the first name it answers to; the fingerprint's first digits where it has none.
        names: every name it answers to.
        is_default: whether it is used when no model is asked for.
        fingerprint: None while that is not known.
        description: one line.
        licence: as the source states it; empty when unknown.
        package: the package, where it is in the home folder and intact.
        problem: why the package in the home folder cannot be used; None where it can, or where
            there is none.
    """

    name: str
    names: tuple[str, ...]
    is_default: bool
    fingerprint: str | None
    description: str
    licence: str
    package: ModelPackage | None
    problem: str | None


def resolve(name: str, progress: home.Progress | None = None) -> ModelPackage:
    """Return the package of a name, an alias or the first digits of a fingerprint.

    A model that llmzip knows is fetched when it is not there.

    Raises:
        ModelMissingError: nothing answers to the name.
        ModelError: it cannot be fetched or used.
    """
    known = _known(name)
    if known is not None:
        fingerprint = known.fingerprint or read_names().get(known.name)
        folder = None if fingerprint is None else _folder_of(fingerprint)
        if folder is None or not folder.exists():
            return pull(known.name, progress)
        return _load(folder, known.name)
    return _load(_cached_folder(name), name)


def resolve_fingerprint(fingerprint8: bytes, progress: home.Progress | None = None) -> ModelPackage:
    """Return the package whose fingerprint starts with these 8 bytes.

    A model that llmzip knows is fetched when it is not there.

    Raises:
        ModelMissingError: there is none, and llmzip does not know where to get it.
        ModelError: it cannot be fetched or used.
    """
    digits = fingerprint8.hex()
    assert len(digits) == FOLDER_DIGITS
    folder = home.packages_folder() / digits
    if folder.exists():
        return _load(folder, digits)
    for known in KNOWN_MODELS:
        if (known.fingerprint or "").startswith(digits):
            return pull(known.name, progress)
    raise ModelMissingError(
        f"the model with fingerprint {digits} is not here;"
        " add it with `llmzip model add PATH` from the files that it was made from"
    )


def list_packages() -> list[ModelListing]:
    """Return every model: the known ones first, then the others by name."""
    names_of: dict[str, list[str]] = {}
    for name, fingerprint in sorted(read_names().items()):
        names_of.setdefault(fingerprint[:FOLDER_DIGITS], []).append(name)
    listings = []
    folders = {path.name: path for path in _package_folders()}
    for known in KNOWN_MODELS:
        digits = (known.fingerprint or read_names().get(known.name, ""))[:FOLDER_DIGITS]
        names = [known.name, *known.aliases]
        names += [name for name in names_of.get(digits, []) if name not in names]
        listings.append(_listing(folders.pop(digits, None), names, known))
    for digits, path in folders.items():
        listings.append(_listing(path, names_of.get(digits, []), None))
    return listings[: len(KNOWN_MODELS)] + sorted(
        listings[len(KNOWN_MODELS) :], key=lambda listing: listing.name
    )


def show(name: str) -> ModelListing:
    """Return what is known about one model; nothing is fetched.

    Raises:
        ModelMissingError: nothing answers to the name.
    """
    listings = list_packages()
    for listing in listings:
        if name in listing.names:
            return listing
    folder = _cached_folder(name)
    return next(
        listing
        for listing in listings
        if listing.fingerprint is not None and listing.fingerprint.startswith(folder.name)
    )


def pull(name: str, progress: home.Progress | None = None) -> ModelPackage:
    """Return the package of a model that llmzip knows, fetched and converted unless it is there.

    A damaged package is made anew.  When another process does the same, the second one waits
    and uses what the first one made.

    Raises:
        ModelMissingError: llmzip does not know the name.
        ModelUnavailableError: the package index cannot be reached.
        ModelMismatchError: the conversion gave another package than the registry pins.
    """
    from archiver.predict.making import make_package
    from archiver.predict.sources import read_source

    progress = progress or home.no_progress
    known = _known(name)
    if known is None:
        choice = ", ".join(model.name for model in KNOWN_MODELS)
        raise ModelMissingError(
            f"no model {name!r} to pull (there is: {choice}; and hf:OWNER/NAME for the hub's)"
        )
    with home.home_locked(progress):
        fingerprint = known.fingerprint or read_names().get(known.name)
        if fingerprint is not None:
            try:
                return load_package(_folder_of(fingerprint), verify=True)
            except InvalidModelError:
                pass  # absent or damaged: made anew below
        with home.scratch_folder() as scratch:
            file = fetch_file(known.origin, scratch, progress)
            package = make_package(
                read_source(file),
                step=f"converted from {file.name} (SHA-256 {known.origin.member_sha256})",
                name=known.name,
                licence=known.licence,
                changes=_changes_of(known),
                required_fingerprint=known.fingerprint,
                progress=progress,
            )
        write_names(read_names() | {known.name: package.fingerprint})
    return package


def add(
    path: str | os.PathLike[str],
    name: str | None = None,
    progress: home.Progress | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    local_heads: LocalHeads | None = None,
) -> ModelPackage:
    """Return the package made from weights (GGUF file, folder, hub) or from a package folder.

    Args:
        path: the file or folder, not needed afterwards; or hf:OWNER/NAME[@REVISION], a string, for
            a repository of the Hugging Face Hub.
        name: what to call it; None makes a name from the source.
        adapter: a file that changes the weights, made by tuning.
        progress: told of the stages.
        local_heads: the heads of a file or folder that can do with a short window; None for none.

    Raises:
        InvalidModelError: the source is refused.
        ModelError, MissingLibraryError: it cannot be fetched from the hub.
        UsageError: the name is not possible, or taken by another model.
    """
    from archiver.predict.making import Changes, make_package
    from archiver.predict.sources import read_source

    progress = progress or home.no_progress
    source = Path(path)
    changes = Changes(adapter=None if adapter is None else Path(adapter), local_heads=local_heads)
    if name is not None:
        _refuse_known(checked_name(name))
    with home.home_locked(progress):
        if is_hub_address(path):
            package = _add_from_hub(str(path), name, changes, progress)
            name = name or package.name
        elif (source / MANIFEST_FILE).is_file():
            if adapter is not None:
                raise UsageError("an adapter changes weights, which a package no longer holds")
            given = load_package(source, verify=True)
            name = name or name_from(given.name)
            package = store_package(
                given.arrays,
                given.config,
                given.read_tokenizer(),
                name=name,
                licence=given.licence,
                history=given.history,
                progress=progress,
            )
        else:
            package = make_package(
                read_source(source), step=f"converted from {source.name}", name=name,
                changes=changes, progress=progress,
            )  # fmt: skip
            name = name or package.name
        _give_name(name, package)
    return package


def _add_from_hub(
    path: str, name: str | None, changes: Changes, progress: home.Progress
) -> ModelPackage:
    """Return the stored package of a model of the hub.  Only for holders of the lock."""
    from archiver.predict.making import make_package

    address = HubAddress.parse(path)
    with home.scratch_folder() as scratch:
        found = fetch_hub_model(address, scratch, progress)
        step = f"converted from {address} (commit {found.commit})"
        return make_package(found.source, step=step, name=name, changes=changes, progress=progress)


def add_source(
    model: SourceModel, name: str, progress: home.Progress | None = None
) -> ModelPackage:
    """Return the package made from weights in memory.

    Raises:
        InvalidModelError: the weights are refused.
        UsageError: the name is not possible, or taken by another model.
    """
    from archiver.predict.making import make_package

    progress = progress or home.no_progress
    _refuse_known(checked_name(name))
    with home.home_locked(progress):
        package = make_package(model, name=name, progress=progress)
        _give_name(name, package)
    return package


def _give_name(name: str, package: ModelPackage) -> None:
    """Let the name stand for the package.  Only for holders of the lock."""
    names, known = read_names(), _known(name)
    pinned = names.get(name) if known is None else known.fingerprint
    if pinned not in (None, package.fingerprint):
        raise UsageError(f"the name {name!r} is taken by another model; give one with --name")
    if known is None:
        write_names(names | {name: package.fingerprint})


def export(
    name: str, folder: str | os.PathLike[str], progress: home.Progress | None = None
) -> None:
    """Write a package to a folder that ``add`` takes on another machine.

    Raises:
        ModelMissingError: nothing answers to the name.
        OutputError: the folder holds something already, or cannot be written.
    """
    package, target = resolve(name, progress), Path(folder)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{target}: exists already")
        target.mkdir(parents=True, exist_ok=True)
        for file in (ARRAYS_FILE, TOKENIZER_FILE, MANIFEST_FILE):
            shutil.copyfile(package.path / file, target / file)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from error


def read_known_source(name: str, progress: home.Progress) -> SourceModel | None:
    """Return the weights of a model that llmzip knows, fetched; None where it knows no such name.

    Raises:
        ModelUnavailableError: the package index cannot be reached.
    """
    from archiver.predict.sources import read_source

    known = _known(name)
    if known is None:
        return None
    with home.home_locked(progress), home.scratch_folder() as scratch:
        file = fetch_file(known.origin, scratch, progress)
        source = _changes_of(known).applied_to(read_source(file))
        # The file is gone after this, and the tensors of a source are read when asked for.
        held = {key: source.tensors[key] for key in source.tensors}
    return dataclasses.replace(source, tensors=held, name=known.name)


def remove(name: str) -> None:
    """Remove a package and its names from the home folder.

    Raises:
        ModelMissingError: it is not there.
    """
    with home.home_locked(), home.scratch_folder() as scratch:
        known = _known(name)
        if known is not None:
            fingerprint = known.fingerprint or read_names().get(known.name, "")
            folder = _folder_of(fingerprint)
            if not fingerprint or not folder.exists():
                raise ModelMissingError(f"the model {known.name} is not in {home.home_folder()}")
        else:
            folder = _cached_folder(name)
        os.rename(folder, scratch / "removed")
        write_names(
            {
                given: fingerprint
                for given, fingerprint in read_names().items()
                if not fingerprint.startswith(folder.name)
            }
        )


def _known(name: str) -> KnownModel | None:
    for known in KNOWN_MODELS:
        if name == known.name or name in known.aliases:
            return known
    return None


def _changes_of(known: KnownModel) -> Changes:
    from archiver.predict.making import Changes

    return Changes(adapter=known.adapter_path, local_heads=known.local_heads)


def _refuse_known(name: str) -> None:
    if _known(name) is not None:
        raise UsageError(f"the name {name!r} stands for a model that llmzip knows")


def _folder_of(fingerprint: str) -> Path:
    return home.packages_folder() / fingerprint[:FOLDER_DIGITS]


def _package_folders() -> list[Path]:
    folder = home.packages_folder()
    return sorted(path for path in folder.iterdir()) if folder.is_dir() else []


def _cached_folder(name: str) -> Path:
    """Return the folder of the package with a given name or with these first digits.

    Raises:
        ModelMissingError: there is none, or there are several.
    """
    fingerprint = read_names().get(name)
    if fingerprint is not None and _folder_of(fingerprint).exists():
        return _folder_of(fingerprint)
    if _FINGERPRINT_PREFIX.fullmatch(name):
        digits = name[:FOLDER_DIGITS]
        found = [path for path in _package_folders() if path.name.startswith(digits)]
        if len(found) > 1:
            raise ModelMissingError(f"several models have a fingerprint that starts with {name}")
        if found and load_package(found[0]).fingerprint.startswith(name):
            return found[0]
    raise ModelMissingError(
        f"no model {name!r}; `llmzip model list` shows those there are,"
        " `llmzip model add PATH` adds one"
    )


def _load(folder: Path, name: str) -> ModelPackage:
    """Return the package in its folder, which must be named by its fingerprint."""
    try:
        package = load_package(folder)
    except InvalidModelError as error:
        cure = f"`llmzip model remove {name}`, then pull or add it again"
        raise InvalidModelError(f"{error}; {cure}") from error
    if not package.fingerprint.startswith(folder.name):
        raise ModelMismatchError(f"{folder}: holds a package with another fingerprint")
    return package


def _listing(path: Path | None, names: list[str], known: KnownModel | None) -> ModelListing:
    package, problem = None, None
    if path is not None:
        try:
            package = _load(path, path.name)
        except (InvalidModelError, ModelMismatchError) as error:
            problem = str(error)
    fingerprint = known.fingerprint if known is not None else None
    if package is not None:
        fingerprint = package.fingerprint
    elif path is not None:
        fingerprint = path.name
    description, licence = "", ""
    if known is not None:
        description, licence = known.description, known.licence
    elif package is not None:
        description, licence = "; ".join(package.history), package.licence
    return ModelListing(
        name=names[0] if names else (fingerprint or "")[:FOLDER_DIGITS],
        names=tuple(names),
        is_default=known is not None and known.name == DEFAULT_MODEL,
        fingerprint=fingerprint,
        description=description,
        licence=licence,
        package=package,
        problem=problem,
    )
