"""Offline tools that make model packages: tune, prune, quantize, heal.

    source (GGUF, folder) ── read_source ──> SourceModel ──> FloatLlama ── train, measure ──┐
                                                 ^                                          │
                     folder on the disk <── write_folder <── SourceModel <── adapter, layers, codes

Everything here computes in floating point and may differ from machine to machine; what it
writes is read back by `archiver.predict`, whose conversion is exact.  It needs no library that
the rest does not need.
"""
