"""Real data behind one function."""

from gradkin.data import rl as rl
from gradkin.data.dataset import Dataset as Dataset
from gradkin.data.dataset import images as images
from gradkin.data.domains import color_by_label as color_by_label
from gradkin.data.domains import rotate as rotate
from gradkin.data.load import load as load
from gradkin.data.protected import load_protected as load_protected

__all__ = ["Dataset", "color_by_label", "images", "load", "load_protected", "rl", "rotate"]
