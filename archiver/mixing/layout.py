"""Sizes of the mixer's parts, and the records that compiled functions pass around.

Source: FORMAT.md, "Mixer".
"""

from __future__ import annotations

import numpy as np

# --- parts that parameters can leave out ----------------------------------------------------

CONTEXTS = 18
MATCHES = 2
MAPS = 10
SETS = 6

# --- tables, whose sizes are powers of two that grow with the frame -------------------------

SLOT_BITS_MIN, SLOT_BITS_MAX = 16, 25
SLOTS_A_BYTE = 32
LINE_BITS = 4  # slots lie in lines of 16, one line of the processor's cache
MATCH_BITS_MIN, MATCH_BITS_MAX = 12, 22
MAP_BITS_MIN, MAP_BITS_MAX = 9, 16
BYTES_A_MAP_ROW = 4
MAP_POINTS = 33  # of an adaptive map's row, one nat apart
BLOCK_BITS = 8  # histories grow in blocks of 256 bytes
BLOCK_MASK = (1 << BLOCK_BITS) - 1
HISTORIES = 1024  # states of a slot's history: 512 for the bits of bytes, 512 for other decisions
EXPECTATIONS = 256
RECORD_BITS_MAX = 17  # of states that are remembered
NEAREST = 32  # states of the model that vote
VOTE_LEVELS = 22  # of all votes together, a power of two each: NEAREST * 2^16 at most
VOTES = 64 * VOTE_LEVELS  # by level, agreement and nearness

# --- decisions ------------------------------------------------------------------------------

# A decision's place: 0 to 7 for the bits of a byte, most significant first; then whether a token
# goes on, whether a symbol is an escape, whether one more byte is escaped.
GOES_ON, IS_ESCAPE, MORE_ESCAPED = 8, 9, 10
PLACES = 11

# A decision's key: 1 to 255 for the bits of a byte, those so far after a leading 1; 256 and the
# symbol's length (at most 31) for GOES_ON; then two each for IS_ESCAPE and MORE_ESCAPED.
GOES_ON_KEY = 256
SYMBOL_BYTES_MAX = 31
IS_ESCAPE_KEY = 288
MORE_ESCAPED_KEY = 290

# Weights are kept apart for tokens, for the bytes of escapes, for where escapes are.
TOKENS, RUNS, FLAGS = range(3)
REGIONS = 3

# --- the mixer's inputs ---------------------------------------------------------------------

MODEL_INPUT = 0
CONSTANT_INPUT = 1
CONTEXT_INPUTS = 2  # two of each context: of its history, of its frequency
MATCH_INPUTS = CONTEXT_INPUTS + 2 * CONTEXTS  # two of each match model
MAP_INPUTS = MATCH_INPUTS + 2 * MATCHES  # one of each adaptive map
NEAREST_INPUTS = MAP_INPUTS + MAPS  # two of the nearest states
INPUTS = 56  # a multiple of what vector units take; what is left over stays 0
assert NEAREST_INPUTS + 2 <= INPUTS

# --- weight sets ----------------------------------------------------------------------------

# One row of weights is chosen of each: by the column; by the byte before; by the lengths of both
# matches; by the symbol's length and the decision's place; by the votes of the nearest states; by a
# hash of the symbol so far and the key.
COLUMNS = 256
LENGTHS = 16
SYMBOL_LENGTHS = 16
SYMBOL_ROW_BITS = 10
SET_ROWS = (
    COLUMNS, 256, LENGTHS * LENGTHS, SYMBOL_LENGTHS * PLACES, 1 + 8 * VOTE_LEVELS,
    1 << SYMBOL_ROW_BITS,
)  # fmt: skip
SET_STARTS = tuple(sum(SET_ROWS[:number]) for number in range(SETS))
ROWS = sum(SET_ROWS)

# --- records --------------------------------------------------------------------------------

# A match model of one stream. POINTER: where it expects the next byte, 0: nowhere; MATCHED: how
# many bytes matched; MISSES: which of the last eight bytes did not, the last one in bit 0; ENDED:
# whether a symbol ended before the pointer.
FOLLOWER = np.dtype(
    [("pointer", np.int64), ("matched", np.int64), ("misses", np.int64), ("ended", np.int64)]
)

STREAM = np.dtype(
    [
        ("position", np.int64),  # of the next byte
        ("column", np.int64),  # bytes since the last line feed
        ("line_start", np.int64),  # position of the line's first byte
        ("above", np.int64),  # position as far along in the line before, or of its line feed; or 0
        ("symbol_bytes", np.int64),  # of the symbol so far
        ("last_8", np.uint64),  # the last eight bytes, the very last in the lowest eight bits
        ("last_16", np.uint64),  # the eight bytes before those
        ("word", np.uint64),  # hash of the letters since the last byte that is none; 0: no letter
        ("word_1", np.uint64),  # the word before, and the one before that
        ("word_2", np.uint64),
        ("field", np.uint64),  # hash of the bytes since the last delimiter
        ("field_1", np.uint64),  # the field before
        ("symbol", np.uint64),  # hash of the symbol so far; 0: no byte
        ("symbol_1", np.uint64),  # the symbols before
        ("symbol_2", np.uint64),
        ("symbol_3", np.uint64),
        ("followers", FOLLOWER, MATCHES),
        ("last_token", np.int64),  # rank of the symbol before; the vocabulary's size for none
    ],
    align=True,
)
"""What a stream knows of its own text."""

FRAME = np.dtype(
    [
        # parameters: whether tokens are mixed, which parts are used
        ("tokens_mixed", np.uint8),
        ("nearest", np.uint8),
        ("contexts", np.uint8, CONTEXTS),
        ("matches", np.uint8, MATCHES),
        ("maps", np.uint8, MAPS),
        ("sets", np.uint8, SETS),
        # sizes: 64 - log2 of the number of lines, of match buckets, of map rows
        ("line_shift", np.uint64),
        ("match_shift", np.uint64),
        ("map_shift", np.uint64),
        ("blocks", np.int64),  # of history that are taken
        ("records", np.int64),  # of states, one a token
        ("signature_bits", np.int64),
        ("input_count", np.int64),  # INPUTS, where a compiler must not know it
        # constants, see `tables`
        ("stretch", np.int32, (4, 513)),
        ("frequency_stretch", np.int32, 4096),
        ("squash", np.int32, 1025),
        ("reciprocals", np.int64, 256),
        # adaptive probabilities, see `logistic`
        ("history_maps", np.uint32, (CONTEXTS, HISTORIES)),
        ("match_maps", np.uint32, (MATCHES, EXPECTATIONS)),
        ("escape_maps", np.uint32, 4),
        ("vote_maps", np.uint32, VOTES),
        # weights in units of 2^-20, and how often each row was used
        ("weights", np.int32, (REGIONS * ROWS, INPUTS)),
        ("uses", np.int32, REGIONS * ROWS),
        ("final_weights", np.int32, (REGIONS, SETS)),
        # the present token: the nearest states and what followed them, see `nearest`
        ("guess", np.int64),
        ("neighbours", np.int64),
        ("nearness", np.int64),
        ("followers", np.int64, NEAREST),
        ("distances", np.int64, NEAREST),
        ("votes", np.int64, NEAREST),
        # the present byte: contexts; the present group of decisions, -1 while that of another
        # byte: hashes and lines; see `slots`
        ("keys", np.uint64, CONTEXTS),
        ("group", np.int64),
        ("groups", np.uint64, CONTEXTS),
        ("lines", np.int64, CONTEXTS),
        # the present decision: the ranks that it is about, what was looked up for it
        ("first_rank", np.int64),
        ("split_rank", np.int64),
        ("end_rank", np.int64),
        ("inputs", np.int32, INPUTS),
        ("slot_of", np.int64, CONTEXTS),
        ("history_of", np.int64, CONTEXTS),
        ("expectation_of", np.int64, MATCHES),
        ("expected_bit", np.int64, MATCHES),
        ("vote_of", np.int64),
        ("voted_bit", np.int64),
        ("row_of_map", np.int64, MAPS),
        ("point", np.int64),
        ("row_of", np.int64, SETS),
        ("output_of", np.int64, SETS),
        ("probability_of", np.int64, SETS),
        ("region", np.int64),
        ("probability", np.int64),
    ],
    align=True,
)
"""What a frame's streams share, but for the tables whose sizes depend on the frame."""
