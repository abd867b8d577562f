"""Networks: pure functions over plain dicts of arrays, made with Flax. The only folder that knows Flax."""

from cljax.networks import nnx_layers as nnx_layers
from cljax.networks.adaptors import from_linen as from_linen
from cljax.networks.adjusting import Layer as Layer
from cljax.networks.adjusting import adjust_layers as adjust_layers
from cljax.networks.adjusting import hidden_layers as hidden_layers
from cljax.networks.alexnet import alexnet as alexnet
from cljax.networks.clnp_wide import clnp_wide as clnp_wide
from cljax.networks.cnn import Pool as Pool
from cljax.networks.cnn import clnp_cnn as clnp_cnn
from cljax.networks.cnn import cnn as cnn
from cljax.networks.cnn import df_cnn_base as df_cnn_base
from cljax.networks.cnn import lenet as lenet
from cljax.networks.convolution import convolve as convolve
from cljax.networks.convolution import max_pool as max_pool
from cljax.networks.export import export_task as export_task
from cljax.networks.gate_checks import check_gates as check_gates
from cljax.networks.layers import BatchNorm as BatchNorm
from cljax.networks.layers import Convolution as Convolution
from cljax.networks.layers import FeatureNorm as FeatureNorm
from cljax.networks.layers import activate as activate
from cljax.networks.layers import gate_features as gate_features
from cljax.networks.linen import make_network as make_network
from cljax.networks.linen import standardize as standardize
from cljax.networks.mixed_precision import in_bfloat16 as in_bfloat16
from cljax.networks.mlp import mlp as mlp
from cljax.networks.nnx import from_nnx as from_nnx
from cljax.networks.own_layers import own_last_layers as own_last_layers
from cljax.networks.resnet import resnet as resnet
from cljax.networks.resnet import resnet18 as resnet18
from cljax.networks.resnet import resnet32 as resnet32
from cljax.networks.resnet import resnet34 as resnet34
from cljax.networks.resnet import resnet50 as resnet50
from cljax.networks.vgg import vgg16 as vgg16
from cljax.networks.vgg import vgg16_reduced as vgg16_reduced

bake = export_task
"""The old name of `export_task`."""
