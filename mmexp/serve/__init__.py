"""An OpenAI-compatible endpoint for a run: requests to prompts, batches of them, and answers in OpenAI's form.

FastAPI and uvicorn are the extra `serve`; only `app.py` and `server.py` import them.
"""

from mmexp.serve.settings import ServeConfig
from mmexp.serve.talk import Desk

__all__ = ["Desk", "ServeConfig"]
