"""The runtime-config contract beside an engine that does not speak it: SGLang, Triton."""
