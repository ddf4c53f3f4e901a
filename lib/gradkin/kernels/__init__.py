"""What is read off kernel matrices, and the kernels."""

from gradkin.kernels.functions import Cauchy as Cauchy
from gradkin.kernels.functions import Cosine as Cosine
from gradkin.kernels.functions import Euclidean as Euclidean
from gradkin.kernels.functions import Exponential as Exponential
from gradkin.kernels.functions import Gaussian as Gaussian
from gradkin.kernels.functions import Laplacian as Laplacian
from gradkin.kernels.functions import Linear as Linear
from gradkin.kernels.functions import Manhattan as Manhattan
from gradkin.kernels.functions import Polynomial as Polynomial
from gradkin.kernels.functions import SquaredEuclidean as SquaredEuclidean
from gradkin.kernels.functions import Tanimoto as Tanimoto
from gradkin.kernels.functions import Tversky as Tversky

__all__ = [
    "Cauchy",
    "Cosine",
    "Euclidean",
    "Exponential",
    "Gaussian",
    "Laplacian",
    "Linear",
    "Manhattan",
    "Polynomial",
    "SquaredEuclidean",
    "Tanimoto",
    "Tversky",
]
