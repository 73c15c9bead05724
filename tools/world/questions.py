"""The front of the question modules: what training and evaluation import.

wordings.py has the words and the rule what training may ask, scenes.py the
questions about shapes, texts.py and visual.py draw training questions.
"""
from texts import draw_texts    # noqa: F401
from visual import caption_of, draw_visual, shapes_of    # noqa: F401
from wordings import *    # noqa: F401,F403
