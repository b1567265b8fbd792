"""Every architecture under one protocol: size, speed, memory, exactness and recall.

`pha bench architectures` trains each by `pha train configs/compare.yaml` in a process of its own, where nothing but
`model.preset` and the length changes; then measures the trained model in further processes.
"""
