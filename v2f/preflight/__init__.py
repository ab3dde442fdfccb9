"""Before a long run: does every device compute correctly, as fast as the others, and is the network fast enough?

    torchrun ... -m v2f.preflight [--recipe RECIPE.yaml]      (launch/preflight starts it; docs/scaling.md explains it)

Each rank measures its own device, all at the same time as in training, without communication (``workloads``)::

    matmul      a product of small integers, which is exact even in bfloat16: its rate, and whether it is correct
    memory      a large copy on the device: its rate, and whether the bytes are the same
    transfer    from pinned memory to the GPU: a bad PCIe slot makes it slow
    step        forward, backward and Adam at learning rate 0: its rate, and whether the same batch gives the same loss

Only then do all-reduces follow (``network``): of all ranks, within each host, between neighboring hosts. So a slow GPU
shows as one slow GPU and not as 63 others that wait for it. The ranks exchange their results through the launcher's
store, not through the devices under test (``meeting``), and if a stage does not end, the ranks that are behind are
named.

A rate is the amount of work over the median time. A rank is *slow* if the median rank's rate is higher by more than the
tolerance (``findings``). Bus bandwidth is that of NVIDIA's nccl-tests: 2 (n - 1) / n times the bytes over the time.
"""
