"""A page to talk to one run, or to two beside each other: what is asked, what is answered, and boxes in the picture.

Gradio is the extra `demo`; only `page.py` and `server.py` import it.
"""

from mmexp.demo.desk import Desk, Speaker
from mmexp.demo.examples import Example, load_examples
from mmexp.demo.settings import DemoConfig

__all__ = ["DemoConfig", "Desk", "Example", "Speaker", "load_examples"]
