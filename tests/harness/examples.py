"""Records that several tests look at."""

from __future__ import annotations

from harness.records import Record, Versions

VERSIONS = Versions(timm="1.0.31", torch="2.13.0", torchorbit="0.1.0")
RESNET18 = Record(
    model="resnet18",
    **VERSIONS,
    input_size=[3, 224, 224],
    params_m=11.69,
    gflops=3.6381,
    converted=True,
    verified="numeric",
    max_diff=1.23e-7,
    prunable=True,
    prunable_proportion=1.0,
    removable_flops=0.99887,
    removal_max_diff=2.5e-7,
    orbits=12,
    units=2880,
    unruled_operators=[],
    seconds=0.5,
    peak_rss_mb=400.0,
)
