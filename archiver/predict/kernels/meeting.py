"""Where threads wait for each other inside kernels, without the interpreter.

Some 100 microseconds lie between two matrix products, and waking a sleeping thread takes a good
part of that. So threads spin for a moment; then they offer the processor to whoever wants it.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from archiver.compiled import compiled
from archiver.predict.kernels.lanes import ARRAY, I32, I64, LaneBuilder, on_lanes
from archiver.types import Int64Array

SPINS = 64  # pauses, some microseconds in all, before the processor is offered
_LINE_ITEMS = 8
_ABANDONED = -(1 << 62)


def new_meeting() -> Int64Array:
    """Arrivals so far: the first item of int64 [8], which fill a cache line."""
    return np.zeros(_LINE_ITEMS, np.int64)


def abandon(meeting: Int64Array) -> None:
    """Nobody waits at this meeting any more."""
    meeting[0] = _ABANDONED


@on_lanes(types.void, ARRAY)
def _add_arrival(t: LaneBuilder, meeting):
    t.builder.atomic_rmw("add", t.pointer(meeting, I64(0), I64), I64(1), "acq_rel")


@on_lanes(types.int64, ARRAY)
def _arrivals(t: LaneBuilder, meeting):
    return t.builder.load_atomic(t.pointer(meeting, I64(0), I64), "acquire", align=8)


@on_lanes(types.void)
def _pause(t: LaneBuilder):
    """A moment in which a spinning thread leaves the core's units to others."""
    kind = ir.FunctionType(ir.VoidType(), [])
    t.builder.call(
        cgutils.get_or_insert_function(t.builder.module, kind, "llvm.x86.sse2.pause"), []
    )


@on_lanes(types.void)
def _offer_processor(t: LaneBuilder):
    kind = ir.FunctionType(I32, [])
    t.builder.call(cgutils.get_or_insert_function(t.builder.module, kind, "sched_yield"), [])


@compiled()
def meet(meeting, expected):
    """Wait until so many have arrived since the meeting was made, the caller included.

    What each of them wrote before, all of them see afterwards, unless it was abandoned.
    """
    _add_arrival(meeting)
    spins = 0
    while True:
        arrived = _arrivals(meeting)
        if arrived >= expected or arrived < 0:
            return
        spins += 1
        if spins < SPINS:
            _pause()
        else:
            _offer_processor()
