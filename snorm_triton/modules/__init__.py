"""What becomes of an ``nn.Module`` that has a parametrization of ours."""
