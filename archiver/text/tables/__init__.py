"""Tables of the character sets of two bytes; see `archiver.text.double_byte`."""
