"""mmexp: experiments on multimodal LLMs, composed from encoder, connector, LLM and stage."""

__version__ = "0.1.0"
