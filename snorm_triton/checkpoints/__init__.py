"""State dicts and checkpoint files of norms, in the two layouts that PyTorch has.

===============  ==================================================================
parametrization  ``parametrizations.weight.original``, ``.weight.0._u``, ``.weight.0._v``
legacy hook      ``weight_orig``, ``weight_u``, ``weight_v``
===============  ==================================================================

We and :func:`torch.nn.utils.parametrizations.spectral_norm` write the first,
:func:`torch.nn.utils.spectral_norm` the second. Both read a weight as the same matrix. Of weight
norms likewise: ``parametrizations.weight.original0`` and ``.original1``, or ``weight_g`` and
``weight_v``.
"""
