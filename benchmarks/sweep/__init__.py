"""The parts of ``models.py``: what is swept, how one model is examined, and the page that is made of it."""
