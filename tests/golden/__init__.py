"""Archives that must decode for ever, byte for byte as they were first made."""
