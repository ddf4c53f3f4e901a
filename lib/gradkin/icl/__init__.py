"""In-context learning as gradient descent: constructions, comparisons, closed forms."""

from gradkin.icl.attention import AttentionWeights as AttentionWeights
from gradkin.icl.attention import attend as attend
from gradkin.icl.attention import attention_scores as attention_scores
from gradkin.icl.attention import init_attention as init_attention
from gradkin.icl.attention import merge as merge
from gradkin.icl.attention import predict as predict
from gradkin.icl.attention import transformer as transformer
from gradkin.icl.compare import Comparison as Comparison
from gradkin.icl.compare import Projection as Projection
from gradkin.icl.compare import balance as balance
from gradkin.icl.compare import compare as compare
from gradkin.icl.compare import interpolate as interpolate
from gradkin.icl.compare import project_on_construction as project_on_construction
from gradkin.icl.compare import row_cosine as row_cosine
from gradkin.icl.construction import gd_attention as gd_attention
from gradkin.icl.construction import softmax_gd_attention as softmax_gd_attention
from gradkin.icl.descent import gd_plus_plus as gd_plus_plus
from gradkin.icl.descent import gradient_descent as gradient_descent
from gradkin.icl.descent import line_search as line_search
from gradkin.icl.features import FeatureWeights as FeatureWeights
from gradkin.icl.features import features as features
from gradkin.icl.features import init_features as init_features
from gradkin.icl.flax_module import nnx_transformer as nnx_transformer
from gradkin.icl.optimum import KURTOSIS as KURTOSIS
from gradkin.icl.optimum import Optimum as Optimum
from gradkin.icl.optimum import optimal_step as optimal_step
from gradkin.icl.softmax_regression import ShiftBounds as ShiftBounds
from gradkin.icl.softmax_regression import equivalent_data_shift as equivalent_data_shift
from gradkin.icl.softmax_regression import equivalent_weight_shift as equivalent_weight_shift
from gradkin.icl.softmax_regression import label_shift as label_shift
from gradkin.icl.softmax_regression import shift_bounds as shift_bounds
from gradkin.icl.softmax_regression import softmax_gd as softmax_gd
from gradkin.icl.softmax_regression import softmax_regression_grad as softmax_regression_grad
from gradkin.icl.softmax_regression import softmax_regression_loss as softmax_regression_loss
from gradkin.icl.tasks import Tasks as Tasks
from gradkin.icl.tasks import classification_tasks as classification_tasks
from gradkin.icl.tasks import linear_tasks as linear_tasks
from gradkin.icl.tasks import replace_targets as replace_targets
from gradkin.icl.tasks import shifted_tasks as shifted_tasks
from gradkin.icl.tasks import sine_tasks as sine_tasks
from gradkin.icl.tokens import centered_labels as centered_labels
from gradkin.icl.tokens import classic_tokens as classic_tokens
from gradkin.icl.tokens import constructed_tokens as constructed_tokens
from gradkin.icl.tokens import sinusoidal_positions as sinusoidal_positions

__all__ = [
    "KURTOSIS",
    "AttentionWeights",
    "Comparison",
    "FeatureWeights",
    "Optimum",
    "Projection",
    "ShiftBounds",
    "Tasks",
    "attend",
    "attention_scores",
    "balance",
    "centered_labels",
    "classic_tokens",
    "classification_tasks",
    "compare",
    "constructed_tokens",
    "equivalent_data_shift",
    "equivalent_weight_shift",
    "features",
    "gd_attention",
    "gd_plus_plus",
    "gradient_descent",
    "init_attention",
    "init_features",
    "interpolate",
    "label_shift",
    "line_search",
    "linear_tasks",
    "merge",
    "nnx_transformer",
    "optimal_step",
    "predict",
    "project_on_construction",
    "replace_targets",
    "row_cosine",
    "shift_bounds",
    "shifted_tasks",
    "sine_tasks",
    "sinusoidal_positions",
    "softmax_gd",
    "softmax_gd_attention",
    "softmax_regression_grad",
    "softmax_regression_loss",
    "transformer",
]
