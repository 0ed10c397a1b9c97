"""A slow decoder written from FORMAT.md alone; it shares nothing but error classes with llmzip.

    container     header, frames, trailer, and what must be rejected
    package       a model package's folder, its fingerprint recomputed
    numbers       exp2, quantize and normalize as the text has them
    predictor     the transformer: one stream, one position at a time
    coder         range coder, decision tree, adaptive contexts, escapes
    decoder       all of them together; ``python -m tests.reference.decoder ARCHIVE PACKAGE_FOLDER``

Each function says which section of FORMAT.md it spells out, and has that section's names.
"""
