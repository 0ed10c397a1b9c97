"""What the header says of the mixer.

Source: FORMAT.md, "Mixer" (parameters).
"""

from __future__ import annotations

from dataclasses import dataclass

from archiver.mixing.layout import CONTEXTS, MAPS, MATCHES, SETS, SLOT_BITS_MAX, SLOT_BITS_MIN

MIXER_VERSION = 3
PARAMETERS_BYTES = 9
_TOKENS_MIXED, _NEAREST = 1, 2  # of the first byte


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerParameters:
    """Which parts of the mixer are used; those left out predict nothing.

    Attributes:
        tokens_mixed: whether the decisions of tokens are mixed; else the model's probabilities
            are used as they are, and the context models serve escapes alone.
        nearest: whether states of the model like the present one vote; not for a model whose
            states are not known.
        slot_bits_max: log2 of the most slots that a frame's table may have.
        contexts, matches, maps, sets: bit i says whether this context, match model, adaptive map
            or weight set is used; at least one set is.
    """

    tokens_mixed: bool = True
    nearest: bool = True
    slot_bits_max: int = SLOT_BITS_MAX
    contexts: int = (1 << CONTEXTS) - 1
    matches: int = (1 << MATCHES) - 1
    maps: int = (1 << MAPS) - 1
    sets: int = (1 << SETS) - 1

    def __post_init__(self) -> None:
        """Raises: ValueError: a field is out of range."""
        ranges = {
            "slot_bits_max": range(SLOT_BITS_MIN, SLOT_BITS_MAX + 1),
            "contexts": range(1 << CONTEXTS),
            "matches": range(1 << MATCHES),
            "maps": range(1 << MAPS),
            "sets": range(1, 1 << SETS),
        }
        for name, allowed in ranges.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)} of the mixer is out of range")

    def encode(self) -> bytes:
        """The parameters as they stand in the header."""
        return bytes(
            [
                self.tokens_mixed * _TOKENS_MIXED | self.nearest * _NEAREST,
                self.slot_bits_max,
                *self.contexts.to_bytes(3, "little"),
                self.matches,
                *self.maps.to_bytes(2, "little"),
                self.sets,
            ]
        )

    @classmethod
    def decode(cls, fields: bytes) -> MixerParameters:
        """The inverse of `encode`.

        Raises:
            ValueError: `encode` makes no such bytes.
        """
        if len(fields) != PARAMETERS_BYTES or fields[0] > _TOKENS_MIXED | _NEAREST:
            raise ValueError("the mixer's parameters are malformed")
        return cls(
            tokens_mixed=bool(fields[0] & _TOKENS_MIXED),
            nearest=bool(fields[0] & _NEAREST),
            slot_bits_max=fields[1],
            contexts=int.from_bytes(fields[2:5], "little"),
            matches=fields[5],
            maps=int.from_bytes(fields[6:8], "little"),
            sets=fields[8],
        )
