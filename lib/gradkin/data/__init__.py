"""Real data behind one function."""

from gradkin.data import rl as rl
from gradkin.data.dataset import Dataset as Dataset
from gradkin.data.dataset import images as images
from gradkin.data.load import load as load

__all__ = ["Dataset", "images", "load", "rl"]
