"""The exact engine in plain torch operations, for any device that torch runs on.

Every float operation is an operation of torch on its own, in the order of FORMAT.md, so nothing is
fused; every sum is one of integers. What comes out has the bits of `archiver.predict.engine`, the
engine for the processor; `conformance` compares the two before a device is used.
"""
