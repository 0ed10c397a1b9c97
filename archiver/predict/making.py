"""Weights become a package: changed, converted, stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from archiver.predict import home
from archiver.predict.adapter import apply_adapter, read_adapter
from archiver.predict.convert import convert
from archiver.predict.names import name_from
from archiver.predict.package import ModelPackage, store_package
from archiver.predict.sources import SourceModel
from archiver.types import LocalHeads


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is done to published weights before anything else.

    Attributes:
        adapter: a file made by tuning; None for none.
        local_heads: the heads that can do with a short window; None for those of the source.
    """

    adapter: Path | None = None
    local_heads: LocalHeads | None = None

    def applied_to(self, model: SourceModel) -> SourceModel:
        """Return the weights, changed.

        Raises:
            InvalidModelError: the adapter is malformed, or of other weights.
        """
        if self.adapter is not None:
            model = apply_adapter(model, read_adapter(self.adapter))
        if self.local_heads is not None:
            config = dataclasses.replace(model.config, local_heads=self.local_heads)
            model = dataclasses.replace(model, config=config)
        return model


NO_CHANGES = Changes()


def make_package(
    model: SourceModel,
    *,
    step: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    changes: Changes = NO_CHANGES,
    required_fingerprint: str | None = None,
    progress: home.Progress,
) -> ModelPackage:
    """Return the stored package of some weights.  Only for holders of the home folder's lock.

    Args:
        step: what the package's history says of this, after what it says already.
        name, licence: None for the source's.
        required_fingerprint: what the package's has to be; None for any.

    Raises:
        InvalidModelError: the weights are refused.
        ModelMismatchError: the fingerprint is another one.
    """
    model = changes.applied_to(model)
    progress("converting", 0, model.config.layers)
    arrays, config = convert(model, progress)
    return store_package(
        arrays,
        config,
        model.tokenizer_json,
        name=name or name_from(model.name),
        licence=model.licence if licence is None else licence,
        history=model.history if step is None else (*model.history, step),
        required_fingerprint=required_fingerprint,
        progress=progress,
    )
