"""`pha bench data`: this project's tokenizing, reading, resuming and remote reading beside other libraries'.

One measurement is one fresh process (:mod:`benchmarks.data.worker`). Everything that other projects' contestants need
(`measure`, `worker`, `formats` and the `peer_*` modules) imports nothing of ours, so that it runs under a second
interpreter whose packages do not have to agree with ours.
"""
